"""What this machine is and has: processors, memory, GPUs, and what they use."""
