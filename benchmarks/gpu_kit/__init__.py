"""A folder that proves and measures medimg on a bare machine with an NVIDIA GPU, without a network."""
