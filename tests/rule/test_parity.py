"""The compiled backends against the reference: every optimizer, variant, dtype, layout and sizes around those of vectors and items.

Rules without row sums give the reference's bits, projected tensors agree within rounding; see side_by_side.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from oracles import Arguments
from records import (
    PROJECTED,
    Record,
    each_compiled,
    each_dtype,
    each_optimizer,
    each_projected,
    each_variant,
    each_variant_in,
)
from side_by_side import SideBySide
from tensors import LARGE_SHAPES, LAYOUTS, SMALL_SHAPES, Gradients, gradient, values

GATES = ["none", "channel", "layer"]


def _starts(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [values(shape, dtype, seed, scale=0.7) for seed, shape in enumerate(shapes)]


each_layout = pytest.mark.parametrize("layout", LAYOUTS)


def _step_small_tensors(backend: str, dtype: torch.dtype, layout: str, record: Record, arguments: Arguments) -> None:
    both = SideBySide(record, arguments, _starts(SMALL_SHAPES, dtype), backend, LAYOUTS[layout])
    gradients = Gradients()
    for _ in range(3):
        both.step(gradients)


@each_compiled
@each_dtype
@each_variant
def test_variants(backend: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    _step_small_tensors(backend, dtype, "contiguous", record, arguments)


@each_compiled
@each_dtype
@each_layout
@each_optimizer
def test_layouts(backend: str, dtype: torch.dtype, layout: str, record: Record) -> None:
    _step_small_tensors(backend, dtype, layout, record, record.typical)


@each_compiled
@each_variant
def test_strided_variants(backend: str, record: Record, arguments: Arguments) -> None:
    _step_small_tensors(backend, torch.float32, "gapped_transposed", record, arguments)


@each_compiled
@each_dtype
@each_optimizer
def test_large_tensors(backend: str, dtype: torch.dtype, record: Record) -> None:
    both = SideBySide(record, record.typical, _starts(LARGE_SHAPES, dtype), backend, threads=3)
    gradients = Gradients()
    for _ in range(2):
        both.step(gradients)


@each_compiled
@each_layout
@each_optimizer
def test_large_strided_tensors(backend: str, layout: str, record: Record) -> None:
    shapes = [(2, 40000), (300, 130), (33, 16, 9, 7)]
    both = SideBySide(record, record.typical, _starts(shapes, torch.float32), backend, LAYOUTS[layout])
    both.step(Gradients())


@each_compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("other", ["contiguous", "transposed", "gapped"])
@each_layout
@each_optimizer
def test_operands_of_different_layouts(
    backend: str, dtype: torch.dtype, other: str, layout: str, record: Record
) -> None:
    """Gradients in another layout than the parameters, moments in a third."""
    starts = _starts([(), (17,), (5, 17), (3, 7, 3, 3), (40, 1025)], dtype)
    p, g, m = LAYOUTS[layout], LAYOUTS[other], LAYOUTS["padded"]
    both = SideBySide(record, record.typical, starts, backend, p, gradient_layout=g, moment_layout=m)
    gradients = Gradients()
    for _ in range(2):
        both.step(gradients)


@each_compiled
@each_projected
@pytest.mark.parametrize("gate", ["none", "channel"])
@pytest.mark.parametrize("counter", [0, 3])
def test_row_of_a_million_elements(backend: str, record: Record, gate: str, counter: int) -> None:
    starts = [values((1, 1_000_003), torch.float32, 5)]
    both = SideBySide(record, record.typical, starts, backend, threads=3)
    both.opt.state[both.params[0]]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)
    both.reference.state[both.models[0]]["gate_counter"] = torch.tensor(1, dtype=torch.uint8)
    both.step(lambda p: gradient(gate, p, 6))
    assert both.opt.last_step()[both.params[0]].gate == gate


@each_compiled
@each_variant_in([torch.float32, torch.float64], PROJECTED)  # 16-bit tensors do not speculate
def test_wrong_and_right_predictions(backend: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """Every pair of a predicted and a true gate, in short rows, cached rows and rows that are cut into pieces."""
    shapes = [(6, 33), (32, 1025), (2, 33000)]
    for counter in (0, 3):
        for gate in GATES:
            both = SideBySide(record, arguments, _starts(shapes, dtype), backend)
            for p, q in zip(both.params, both.models, strict=True):
                both.opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)
                both.reference.state[q]["gate_counter"] = torch.tensor(1, dtype=torch.uint8)
            both.step(lambda p, gate=gate: gradient(gate, p, 3))


@each_compiled
@each_optimizer
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12], ids="{:g}".format)
def test_magnitudes(backend: str, record: Record, scale: float) -> None:
    """Numbers far from 1 whose squares fit into float32."""
    starts = [scale * start for start in _starts([(9,), (6, 33), (3, 7, 3, 3)], torch.float32)]
    both = SideBySide(record, record.typical, starts, backend)
    for seed in range(3):
        both.step(lambda p, seed=seed: scale * values(p.shape, p.dtype, seed))
