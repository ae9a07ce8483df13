"""The attention kernels compiled for NVIDIA GPUs without one: registers, spills, shared memory, blocks at once."""
