"""How parameters and moments can be stored, and a backend beside the reference in each way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import truth
from compare import assert_within
from oracles import Arguments
from records import RECORDS, Record
from side_by_side import UNITS, SideBySide
from tensors import Gradients, values

BF16, F32 = torch.bfloat16, torch.float32
# With the dtype of the parameters.
SHORT: dict[str, tuple[torch.dtype, Arguments]] = {
    "short_moments": (F32, dict(state_dtype=BF16)),
    "exact_short_moments": (BF16, dict(state_dtype=BF16, master_weights=True)),
    "nearest_short_moments": (BF16, dict(state_dtype=BF16)),
    "stochastic": (BF16, dict(stochastic_rounding=True, seed=3)),
    "stochastic_short_moments": (BF16, dict(stochastic_rounding=True, state_dtype=BF16, seed=1 << 40)),
}
BLOCKS: dict[str, tuple[torch.dtype, Arguments]] = {
    "blocks": (F32, dict(state_dtype="8bit")),
    "exact_blocks": (BF16, dict(state_dtype="8bit", master_weights=True)),
    "nearest_blocks": (BF16, dict(state_dtype="8bit")),
    "stochastic_blocks": (BF16, dict(stochastic_rounding=True, state_dtype="8bit", seed=5)),
}
PRECISIONS = (
    SHORT
    | BLOCKS
    | {
        "nearest": (BF16, {}),
        "exact": (BF16, dict(master_weights=True)),
        "float16": (torch.float16, {}),
    }
)

each_short_precision = pytest.mark.parametrize("precision", SHORT)
each_with_blocks = pytest.mark.parametrize("precision", BLOCKS)


class BesideReference(SideBySide):
    """Weights of projected tensors are compared with the reference's, which are made of the same rounded moments: within the
    rounding of the sums, and where they are rounded to bfloat16 after that, within that at few elements."""

    def _compare_rounded(self, i: int, units: float, x: Any, g: Any, state: Any) -> Any:
        p, q = self.params[i], self.models[i]
        state = {key: value for key, value in state.items() if not key.endswith("_scale")}
        want = truth.step(self.record.name, self.reference.param_groups[0], x, g, state)
        own, other = self.opt.master(p), self.reference.master(q)
        if own.itemsize == 2:
            apart = own != other
            assert int(apart.sum()) <= 1 + p.numel() // 50
            assert bool(((own.float() - other.float()).abs()[apart] <= 2.0**-6 * other.float().abs()[apart]).all())
        else:
            assert_within(own, other, want.size, UNITS, f"parameter {i}")
        self.opt.set_master(p, other)
        return want.u_size


def run(
    precision: str,
    record: Record,
    arguments: Arguments,
    shapes: Sequence[tuple[int, ...]],
    backend: str,
    steps: int,
    wide_gradients: bool = False,
    **more: Any,
) -> None:
    dtype, options = PRECISIONS[precision]
    starts = [values(shape, dtype, seed, scale=0.7) for seed, shape in enumerate(shapes)]
    both = BesideReference(record, {**arguments, **options}, starts, backend, **more)
    gradients = Gradients()
    if wide_gradients:
        for p in (*both.params, *both.models):
            p.grad_dtype = F32
    for _ in range(steps):
        both.step((lambda p: gradients(p.float())) if wide_gradients else gradients)


SHAPES = ((9, 33), (9, 33), (70,))


def trained(
    precision: str,
    backend: str = "cpu",
    steps: int = 3,
    record: str = "AdamP",
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    **more: Any,
) -> tuple[Any, list[Tensor]]:
    """An optimizer and its parameters after some steps; two of them begin as equals."""
    dtype, options = PRECISIONS[precision]
    params = [values(shape, dtype, len(shape)) for shape in shapes]
    opt = RECORDS[record].make(params, backend=backend, **{**RECORDS[record].typical, **options, **more})
    return train(opt, params, 0, steps), params


def train(opt: Any, params: list[Tensor], first: int, steps: int) -> Any:
    for step in range(first, first + steps):
        for p in params:
            p.grad = values(p.shape, p.dtype, 100 + step)
        opt.step()
    return opt
