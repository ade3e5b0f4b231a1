"""Rows at the limits of the CUDA row cache, and deferred rows in a tensor whose other rows `update` writes."""

from __future__ import annotations

import pytest
import torch

import onepass
from compare import assert_within
from counting import count
from emulated_backend import emulated, plan_of
from records import RECORDS, Record, each_dtype, each_optimizer, each_projected
from side_by_side import SideBySide
from steps import UNITS, check_first_step, first_step_of, optimizer_of, set_counter
from tensors import LAYOUTS, generator, gradient, values

DTYPE_NUMBERS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def row_cache_bytes_of(length: int, dtype: torch.dtype, packed: bool) -> int:
    """The row cache of a block, in bytes, in a plan of such rows."""
    room, _, _ = emulated.launch_layout_of([(DTYPE_NUMBERS[dtype], [2, length], True, packed)])
    return room


def limits(dtype: torch.dtype, packed: bool) -> set[int]:
    """Row lengths around those that fill the row cache of a warp and of a block, with p and u or u alone; and the larger
    one of a block whose rows need it."""
    lanes = (2 if dtype == torch.float64 else 4) if packed else 1
    block = emulated.limits["block"]
    slot = max(dtype.itemsize, 4) * lanes * block
    found = set()
    for threads, kept in ((emulated.limits["warp"], 2), (block, 2), (block, 1)):
        full = row_cache_bytes_of(1, dtype, packed) // (kept * slot) * threads * lanes
        wide = row_cache_bytes_of(full + 1, dtype, packed) // (kept * slot) * threads * lanes
        for most in {full, wide}:
            found |= {most - lanes - 1, most - lanes, most - lanes + 1, most - 1, most, most + 1}
    return found


def step_rows(record: Record, dtype: torch.dtype, layout: str, length: int) -> None:
    """Predicted right: cached if it fits. Because of the guards around the tensor, rows begin between two vectors."""
    both = SideBySide(record, record.typical, [values((2, length), dtype, length)], "emulated", LAYOUTS[layout])
    set_counter(both.opt, both.params[0], 3)
    set_counter(both.reference, both.models[0], 3)
    both.step(lambda p: gradient("channel", p, 3))


@each_dtype
@each_projected
@pytest.mark.parametrize("layout", ["contiguous", "gapped"])
def test_rows_that_just_fit_the_row_cache(dtype: torch.dtype, layout: str, record: Record) -> None:
    lengths = sorted(limits(dtype, layout == "contiguous"))
    assert lengths[0] > 500 and lengths[-1] > 2 * lengths[0]
    for length in lengths:
        step_rows(record, dtype, layout, length)


def test_wide_rows_enlarge_the_row_cache() -> None:
    opt = onepass.AdamP([torch.ones(2, 18_000)], backend="emulated")
    opt.param_groups[0]["params"][0].grad = torch.ones(2, 18_000)
    opt.step()
    assert plan_of(opt).row_cache_bytes > row_cache_bytes_of(1000, torch.float32, True)


@each_dtype
@pytest.mark.parametrize("shape", [(1, 1500), (1, 2047), (2, 1024), (1, 2048), (2, 1025)])
def test_largest_tensors_of_a_warp(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    record = RECORDS["AdamP"]
    both = SideBySide(record, record.typical, [values(shape, dtype, 1)], "emulated")
    for _ in range(2):
        both.step(lambda p: gradient("channel", p, 3))


# ------------------------------------------------------------------ deferred rows


@pytest.mark.parametrize("gate", ["none", "channel"])
@pytest.mark.parametrize("counter", [0, 3])
def test_deferred_piece(gate: str, counter: int) -> None:
    """The first piece of a row is tiny: by its own sums p cannot be recovered from its step, by those of the whole row it
    can."""
    record = RECORDS["AdamP"]
    p = values((1, 60_000), torch.float32, 1)
    p[:, :15_000] *= 1e-7
    opt = optimizer_of(record, p, "emulated")
    set_counter(opt, p, counter)
    p.grad = gradient(gate, p, 2)
    _, _, items = emulated.launch_layout_of([(0, list(p.shape), True, True)])
    assert items[0][4] < 15_000
    assert check_first_step(opt, record, p) == gate


def test_correction_writes_deferred_rows_only() -> None:
    """The prediction is right, and one row out of 64 was deferred: `correct` reads and writes this row only."""
    p = values((64, 1024), torch.float32, 1)
    p[5] *= 1e-7
    opt = onepass.AdamP([p], lr=1e-3, weight_decay=1e-2, backend="emulated")
    p.grad = gradient("none", p, 2)
    p.grad[5] += torch.randn(1024, generator=generator(7))
    p.grad[5] += 1e7 * p[5]
    traffic = count(opt)
    (verdict,) = opt.last_step().values()
    assert (verdict.gate, verdict.corrected) == ("none", False)
    # Each row is written once: `update` does not write the deferred one.
    assert traffic.of("p") == (4 + 4 / 64, 4) and traffic.of("m") == (4 + 4 / 64, 4)


def test_more_corrections_than_a_warp_has_lanes() -> None:
    """All predictions are wrong, of tensors that warps step and of some that blocks step. Then none is."""
    record = RECORDS["AdamP"]
    shapes = [(8, 8)] * 40 + [(64, 200)] * 3 + [(4, 4)] * 30
    both = SideBySide(record, record.typical, [values(s, torch.float32, i) for i, s in enumerate(shapes)], "emulated")
    for time in range(3):
        both.step(lambda p: gradient("channel", p, 3))
        assert {verdict.corrected for verdict in both.opt.last_step().values()} == {time == 0}


@each_optimizer
@pytest.mark.parametrize("counter", [0, 3])
def test_nan_survives_zero_lr_and_decay(record: Record, counter: int) -> None:
    """With lr = 0 and no decay p stays, except where the update is NaN."""
    p = values((12, 40), torch.float32, 1)
    start = p.clone()
    opt = optimizer_of(record, p, "emulated", lr=0.0, weight_decay=0.0)
    if record.projected:
        set_counter(opt, p, counter)
    p.grad = values(p.shape, p.dtype, 2)
    p.grad[7, 3] = torch.nan
    want = first_step_of(opt, record, p)
    opt.step()
    bad = torch.zeros(p.shape, dtype=torch.bool)
    bad[7, 3] = True
    assert torch.equal(p.isnan(), bad)
    assert torch.equal(p[~bad], start[~bad])
    assert_within(p[~bad], want.p[~bad.numpy()], want.size[~bad.numpy()], UNITS, "the rest")
