"""The CUDA kernels give the same bits for any order and number of blocks, warps and threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from block_orders import Device, on
from compare import digest, everything
from drive import gradient_at, parameters_of
from emulated_backend import emulated
from oracles import Arguments
from records import RECORDS, Record, each_dtype, each_optimizer
from side_by_side import SideBySide
from tensors import LARGE_SHAPES, LAYOUTS, SMALL_SHAPES, Gradients, Guarded, values

IN_ORDER = Device(0)
# More blocks than items, one block for all, and prime numbers of multiprocessors and blocks.
OTHERS = [Device(1), Device(2, 1, 1), Device(3, 7), Device(0, 7, 1), Device(4, 1, 3), Device(5, 1000)]


# Rows for a lane, a subgroup, a warp and a block; cached rows, several to an item of a block, pieces, vectors, and
# strided tensors.
SHAPES = [(9, 3), (40, 17), (5, 200), (8, 8), (300, 40), (17, 1500), (7, 2500), (3, 40_000), (20_001,), (7,), (5, 5)]
STRIDED = [((12, 40), "transposed"), ((2, 9000), "gapped"), ((30, 7, 3, 3), "channels_last"), ((50,), "gapped")]


def parameters(dtype: torch.dtype) -> list[Tensor]:
    packed = [values(shape, dtype, seed) for seed, shape in enumerate(SHAPES)]
    return packed + [Guarded(values(shape, dtype, 9), LAYOUTS[layout]).tensor for shape, layout in STRIDED]


def gradients(dtype: torch.dtype, steps: int) -> list[list[Tensor]]:
    """Gradients of all parameters at every step, through every gate."""
    params = parameters(dtype)
    return [[gradient_at(p, time + i) for i, p in enumerate(params)] for time in range(steps)]


def written(record: Record, arguments: Arguments, given: Sequence[Sequence[Tensor]]) -> tuple[Any, ...]:
    """A digest of parameters and state after some steps, and the verdict of each step."""
    opt = record.make(parameters(given[0][0].dtype), backend="emulated", **arguments)
    seen = []
    for each in given:
        for p, g in zip(parameters_of(opt), each, strict=True):
            p.grad = g
        opt.step()
        seen += [repr(verdict) for verdict in opt.last_step().values()]
    assert everything(opt)
    return digest(opt), seen


def assert_same_everywhere(record: Record, arguments: Arguments, dtype: torch.dtype, devices: list[Device]) -> None:
    given = gradients(dtype, 3)
    with on(IN_ORDER):
        want = written(record, arguments, given)
    for device in devices:
        with on(device):
            assert written(record, arguments, given) == want, device


@each_dtype
@each_optimizer
def test_same_bits_in_any_order(dtype: torch.dtype, record: Record) -> None:
    assert_same_everywhere(record, record.typical, dtype, OTHERS)


@pytest.mark.parametrize(
    ("name", "variant"),
    [("AdamP", "two_visits"), ("AdamP", "as_timm"), ("SGDP", "project_momentum"), ("SGDP", "two_visits")],
)
def test_same_bits_of_variants(name: str, variant: str) -> None:
    record = RECORDS[name]
    assert_same_everywhere(record, record.variants[variant], torch.float32, OTHERS[:3])


@each_dtype
@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_any_order_matches_the_reference(dtype: torch.dtype, name: str) -> None:
    """Bits that are equal in every order could still be wrong in all."""
    for seed in (1, 2):
        with on(Device(seed, 3)):
            starts = [values(shape, dtype, i, scale=0.7) for i, shape in enumerate(SMALL_SHAPES + LARGE_SHAPES)]
            both = SideBySide(RECORDS[name], RECORDS[name].typical, starts, "emulated")
            given = Gradients()
            for _ in range(2):
                both.step(given)


def test_devices_differ_in_grid_size() -> None:
    given = gradients(torch.float32, 1)
    grids = set()
    for device in (IN_ORDER, *OTHERS):
        with on(device):
            written(RECORDS["AdamP"], RECORDS["AdamP"].typical, given)
            grids.add(max(grid for grid, _, _ in emulated.launches()))
    assert min(grids) == 1 and max(grids) > 20 and len(grids) > 3
