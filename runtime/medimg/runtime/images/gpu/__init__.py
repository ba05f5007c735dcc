"""Decoding of JPEG files on an NVIDIA GPU, for as far as its pixels have been shown to be the CPU's."""

from medimg.runtime.images.gpu.decoder import GpuDecoder, open_decoder

__all__ = ["GpuDecoder", "open_decoder"]
