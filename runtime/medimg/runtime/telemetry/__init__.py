"""Power, load and temperature while a model runs: `tegrastats` on Jetson boards, NVML on other GPUs."""
