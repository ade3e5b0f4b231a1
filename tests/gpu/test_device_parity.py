"""The GPU backend against the reference: every optimizer, variant, dtype, layout and alignment, and edge-case sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gpu.pair import PLACES, Pair
from gpu.target import ON_CUDA, pick
from oracles import Arguments
from records import DTYPES, Record, each_optimizer, each_projected, each_projected_variant, each_variant
from tensors import SMALL_SHAPES, Gradients, gradient, values

GATES = ["none", "channel", "layer"]
ALIGNED = PLACES["aligned"]
# Rows that fit the row cache of a warp or of a block, or are cut into pieces, at each limit; tensors of one or many items.
LARGE_SHAPES: list[tuple[int, ...]] = pick(
    [
        (300_001,), (2, 65_537), (1, 32_769), (3, 32_768), (40, 1025), (5000, 9), (9000, 1), (33, 16, 9, 7), (2, 4607),
        (2, 9212), (3, 9213), (2, 14_333), (3, 18_425), (257, 2048), (130, 64), (2049,), (5, 8192),
    ],
    [(3001,), (2, 9300), (40, 257), (500, 9)],
)  # fmt: skip


def each_dtype(*emulated: torch.dtype) -> pytest.MarkDecorator:
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in DTYPES}
    return pytest.mark.parametrize("dtype", DTYPES if ON_CUDA else emulated, ids=names.get)


def starts(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [values(shape, dtype, seed, scale=0.7) for seed, shape in enumerate(shapes)]


@each_dtype(torch.float32)
@each_variant
def test_variants(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    pair, gradients = Pair(record, arguments, starts(SMALL_SHAPES, dtype), ALIGNED), Gradients()
    for _ in range(pick(3, 2)):
        pair.step(gradients)


@each_dtype(torch.bfloat16)
@pytest.mark.parametrize("place", PLACES)
@each_optimizer
def test_places(dtype: torch.dtype, place: str, record: Record) -> None:
    pair, gradients = Pair(record, record.typical, starts(SMALL_SHAPES, dtype), PLACES[place]), Gradients()
    for _ in range(pick(3, 1)):
        pair.step(gradients)


@each_dtype(torch.float32)
@pytest.mark.parametrize("place", ["aligned", "unaligned unlike"])
@each_optimizer
def test_large_tensors(dtype: torch.dtype, place: str, record: Record) -> None:
    pair, gradients = Pair(record, record.typical, starts(LARGE_SHAPES, dtype), PLACES[place]), Gradients()
    for _ in range(pick(2, 1)):
        pair.step(gradients)


@pytest.mark.parametrize("place", ["gapped_transposed", "layouts mixed", "channels_last"])
@each_optimizer
def test_large_strided_tensors(place: str, record: Record) -> None:
    shapes = pick([(2, 40_000), (300, 130), (33, 16, 9, 7)], [(20, 30), (3, 4, 5, 6)])
    Pair(record, record.typical, starts(shapes, torch.float32), PLACES[place]).step(Gradients())


@each_dtype(torch.float32)
@each_projected_variant
def test_wrong_and_right_predictions(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """Every pair of a predicted and a true gate, for short rows, rows that fit the row cache and rows cut into pieces."""
    shapes = pick([(6, 33), (33, 1025), (2, 33_000)], [(6, 33), (3, 257)])
    for counter in (0, 3):
        for gate in GATES:
            pair = Pair(record, arguments, starts(shapes, dtype), ALIGNED)
            pair.predict(counter)
            pair.step(lambda p, gate=gate: gradient(gate, p, 3))


@each_projected
@pytest.mark.parametrize("gate", ["none", "channel"])
@pytest.mark.parametrize("counter", [0, 3])
def test_one_long_row(record: Record, gate: str, counter: int) -> None:
    shape = pick((1, 1_000_003), (1, 20_003))
    pair = Pair(record, record.typical, [values(shape, torch.float32, 5)], PLACES["unaligned alike"])
    pair.predict(counter)
    pair.step(lambda p: gradient(gate, p, 6))
    assert pair.verdicts[pair.params[0]].gate == gate


@each_optimizer
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf(record: Record, bad: float) -> None:
    """A NaN or Inf changes only its own element, and the gate of its tensor is none."""
    start = values((30, 20), torch.float32, 1)
    pair = Pair(record, record.typical, [start, start.flatten()], ALIGNED)

    def spoiled(p: Tensor) -> Tensor:
        g = gradient("channel", start, 2).reshape(p.shape)
        g.view(-1)[143] = bad
        return g

    for p, q in zip(pair.params, pair.models, strict=True):
        q.grad = spoiled(q)
        p.grad = q.grad.to(p.device)
    pair.opt.step()
    pair.reference.step()
    for held, q in zip(pair.held, pair.models, strict=True):
        found = held.fetch()
        assert torch.equal(found.isfinite(), q.isfinite()) and int((~found.isfinite()).sum()) == 1
        torch.testing.assert_close(found, q, rtol=1e-5, atol=1e-6, equal_nan=True)
    for p, verdict in pair.opt.last_step().items():
        assert p is pair.params[0] and verdict.gate == "none" and verdict.cosine != verdict.cosine
