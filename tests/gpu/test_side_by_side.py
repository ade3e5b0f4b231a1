"""Several optimizers in one process, with row caches of different sizes."""

from __future__ import annotations

from torch import float32

import onepass
from compare import assert_same_bits
from gpu.target import BACKEND, to_device, to_host
from tensors import gradient, values


def test_alternating_row_cache_sizes() -> None:
    """Their row caches differ in size; the shared memory limit is an attribute of a kernel, not of a plan."""
    opts = []
    for columns in (9_500, 18_000, 200):
        pair = [to_device(values((3, columns), float32, columns)) for _ in range(2)]
        opts.append([onepass.AdamP([p], lr=1e-2, weight_decay=0.1, backend=BACKEND) for p in pair])
    assert len({_step(alone) for alone, _ in opts}) > 1
    for _ in range(2):
        for _, beside in opts:
            _step(beside)
    for alone, beside in opts:
        _step(alone)
        (p,), (q,) = alone.param_groups[0]["params"], beside.param_groups[0]["params"]
        assert_same_bits(to_host(p), to_host(q), f"{p.shape}")


def _step(opt: onepass.AdamP) -> int:
    """Steps; returns the size of the plan's row cache."""
    (p,) = opt.param_groups[0]["params"]
    p.grad = to_device(gradient("channel", to_host(p), 1))
    opt.step()
    return opt._execution.backends[0].plan.row_cache_bytes
