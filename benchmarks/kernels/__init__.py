"""Single operations: kernels of one core or GPU, collectives, and the fused operation over ranks."""
