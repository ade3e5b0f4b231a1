"""The Triton kernels of onepass, installed as `onepass.triton_kernels`; `onepass.backend.triton` imports them when first used.

plan.py            which rows of which tensors go into which program: pure, without Triton
launch.py          the launches of a step
kernels.py         a kernel for each phase, on one tile
gate.py            from row statistics to verdicts
rules.py           one element, or the scalars of one row: reference.py and csrc/rules/, under the same names
blocks.py          moments of 8 bits
memory.py          tables and elements in global memory
draws.py           random bits of stochastic rounding
device_scalars.py  scalars of groups whose steps the device counts
jit.py             the decorator of functions that kernels call
"""
