"""NVML: the GPUs of this machine and their counters."""
