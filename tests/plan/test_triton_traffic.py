"""Memory traffic of the Triton kernels: counted bytes loaded and stored, by operand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import onepass
from triton_traffic import Streams, total, traffic

SHAPES = [(64, 1024), (33, 1023), (16, 3072), (24, 16, 3, 3)]


def fp32(p: tuple[int, int] = (4, 4), g: int = 4, m: tuple[int, int] = (4, 4), v: tuple[int, int] = (4, 4)) -> Streams:
    return {"p": p, "g": (g, 0), "m": m, "v": v}


NONE = (0, 0)
# A step with a correction, which loads p and the moments again and stores p.
CORRECTED = fp32(p=(8, 8), m=(8, 4), v=(8, 4))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamProx", "AdamProxL2"])
def test_28_bytes(name: str, shape: tuple[int, ...]) -> None:
    found, _ = traffic(getattr(onepass, name), shape)
    assert found == fp32() and total(found) == 28


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gate", ["none", "channel"])
def test_28_bytes_of_adamp_with_a_right_prediction(gate: str, shape: tuple[int, ...]) -> None:
    found, _ = traffic(onepass.AdamP, shape, gate, gate)
    assert found == fp32()


@pytest.mark.parametrize(("make", "gate"), [(onepass.AdamW, "none"), (onepass.AdamP, "channel")])
def test_clipping_reads_g_once_more(make: Any, gate: str) -> None:
    found, _ = traffic(make, (64, 1024), gate, gate, clips=True)
    assert found == fp32(g=8) and total(found) == 32


def test_traffic_of_the_tables() -> None:
    """A row has 48 bytes of row statistics and 24 of the row table, besides a few words that all rows of a program read: 1% of
    a row of 4096 elements."""
    for make in (onepass.AdamW, onepass.AdamP):
        _, tables = (
            traffic(make, (64, 4096), "channel", "channel") if make is onepass.AdamP else traffic(make, (64, 4096))
        )
        assert tables < 0.28


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("gate", "predicted"), [("channel", "none"), ("none", "channel"), ("layer", "none")])
def test_44_bytes_with_a_wrong_prediction(gate: str, predicted: str, shape: tuple[int, ...]) -> None:
    found, _ = traffic(onepass.AdamP, shape, gate, predicted)
    assert found == CORRECTED and total(found) == 44


def test_a_correction_reads_the_gradient_only_for_nesterov() -> None:
    found, _ = traffic(onepass.AdamP, SHAPES[0], "channel", "none", nesterov=True)
    assert found == {**CORRECTED, "g": (8, 0)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gate", ["none", "channel"])
def test_36_bytes_without_speculation(gate: str, shape: tuple[int, ...]) -> None:
    found, _ = traffic(onepass.AdamP, shape, gate, speculate=False)
    assert found == fp32(p=(8, 4), g=8) and total(found) == 36


def test_16_bits() -> None:
    half = {"p": (2, 2), "g": (2, 0), "m": (4, 4), "v": (4, 4)}
    found, _ = traffic(onepass.AdamW, SHAPES[0], dtype=torch.bfloat16)
    assert found == half and total(found) == 22
    found, _ = traffic(onepass.AdamP, SHAPES[0], "channel", dtype=torch.bfloat16)
    assert found == {**half, "p": (4, 2), "g": (4, 0)} and total(found) == 26


@pytest.mark.parametrize(
    ("make", "arguments", "want"),
    [
        (onepass.SGD, dict(momentum=0.9), fp32(v=NONE)),
        (onepass.SGD, dict(momentum=0.9, nesterov=True), fp32(v=NONE)),
        (onepass.SGD, {}, fp32(m=NONE, v=NONE)),  # 12: without momentum there is no buffer
        (onepass.SGDP, dict(momentum=0.9), fp32(v=NONE)),
        (onepass.SGDP, dict(momentum=0.9, project_momentum=True), fp32(p=(8, 4), g=8, v=NONE)),
    ],
)
def test_sgd(make: Any, arguments: dict[str, Any], want: Streams) -> None:
    found, _ = traffic(make, SHAPES[0], **arguments)
    assert found == want


def test_a_row_in_pieces() -> None:
    """A row longer than a tile is written by `update` if no projection is predicted, and else deferred to `correct`."""
    shape = (2, 9000)
    assert traffic(onepass.AdamP, shape, "none", "none")[0] == fp32()
    assert traffic(onepass.AdamP, shape, "channel", "channel")[0] == fp32(p=(8, 4), m=(8, 4), v=(8, 4))
