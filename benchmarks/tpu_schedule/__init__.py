"""The attention kernels for TPUs by the compiler's own schedule, beside jax's splash attention; needs no TPU."""
