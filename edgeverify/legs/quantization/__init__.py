"""Quantized files: what their weights stand for, what their kernels round, and the verdict."""
