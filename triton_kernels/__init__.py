"""The Triton kernels of onepass, imported as `onepass.triton_kernels` by `onepass.triton` when they are first needed.

rule.py     one element, or the scalars of one row: the text of reference.py and csrc/rules/, under the same names
plan.py     which rows of which tensors go side by side into which program: pure, without Triton
kernels.py  the traversal: rows in memory
live.py     scalars of groups whose steps the device counts
launch.py   the launches of a step
"""
