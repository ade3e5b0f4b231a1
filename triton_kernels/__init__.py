"""Triton kernels, imported as `onepass.triton_kernels`: to come, so that GPUs work where nothing can be compiled."""
