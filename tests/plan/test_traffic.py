"""Memory traffic of the CUDA kernels: counted bytes loaded and stored, by operand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import onepass
from counting import OPERANDS, Traffic, count, table, traffic_of
from emulated_backend import emulated
from tensors import gradient, values

Streams = dict[str, tuple[float, float]]

MATRIX = (1024, 1024)
# Rows of whole vectors, unaligned rows, shapes of a transformer and a convolution, and two tensors.
LARGE: list[list[tuple[int, ...]]] = [
    [MATRIX],
    [(1100, 1023)],
    [(768, 3072)],
    [(512, 512, 3, 3)],
    [(3072, 768), (768,)],
]
MOMENTUM = dict(momentum=0.9)
MEASURED = dict(speculate=False)
PROJECTED_MOMENTUM = dict(momentum=0.9, project_momentum=True)
BF16 = torch.bfloat16


def fp32(p: tuple[int, int] = (4, 4), g: int = 4, m: tuple[int, int] = (4, 4), v: tuple[int, int] = (4, 4)) -> Streams:
    """Bytes loaded and stored per element; by default each operand once."""
    return {"p": p, "g": (g, 0), "m": m, "v": v}


NONE = (0, 0)
# A step with a correction, which loads p and the moments again and stores p.
CORRECTED = fp32(p=(8, 8), m=(8, 4), v=(8, 4))


def assert_streams(traffic: Traffic, want: Streams) -> None:
    assert {name: traffic.of(name) for name in want} == want


def assert_total(traffic: Traffic, want: Streams, most: float) -> None:
    """The total, with plan and row statistics, is at most `most` times the bytes of the operands."""
    assert_streams(traffic, want)
    streams = sum(map(sum, want.values()))
    assert traffic.streams == streams
    assert streams < traffic.total <= most * streams, table({"": traffic})


# ------------------------------------------------------------------ without a second visit


@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamProx", "AdamProxL2"])
def test_28_bytes(name: str, shapes: list[tuple[int, ...]]) -> None:
    traffic = traffic_of(getattr(onepass, name), shapes)
    assert_streams(traffic, fp32())
    assert traffic.streams == 28
    assert traffic.total < 28.1


@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize("gate", ["none", "channel"])
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
def test_28_bytes_of_adamp_with_a_right_prediction(gate: str, decay: str, shapes: list[tuple[int, ...]]) -> None:
    assert_total(traffic_of(onepass.AdamP, shapes, gate=gate, predicted=gate, decay=decay), fp32(), 1.01)


@pytest.mark.parametrize(
    ("make", "arguments", "want", "most"),
    [
        (onepass.SGD, MOMENTUM, fp32(v=NONE), 1.005),
        (onepass.SGD, {**MOMENTUM, "nesterov": True}, fp32(v=NONE), 1.005),
        (onepass.SGD, {}, fp32(m=NONE, v=NONE), 1.01),  # 12: without momentum there is no buffer
        (onepass.SGDP, MOMENTUM, fp32(v=NONE), 1.01),
        (onepass.SGDP, {**MOMENTUM, "nesterov": True}, fp32(v=NONE), 1.01),
    ],
)
def test_20_bytes_of_sgd(make: Any, arguments: dict[str, Any], want: Streams, most: float) -> None:
    for gate in ("none", "channel") if make is onepass.SGDP else ("none",):
        assert_total(traffic_of(make, [MATRIX], gate=gate, predicted=gate, **arguments), want, most)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamProx"])
def test_22_bytes_of_bf16(name: str) -> None:
    traffic = traffic_of(getattr(onepass, name), [MATRIX], dtype=BF16)
    assert_total(traffic, fp32(p=(2, 2), g=2), 1.005)


@pytest.mark.parametrize(
    ("make", "gates", "want"),
    [
        (onepass.AdamW, {}, fp32(p=(2, 2), g=2)),
        (onepass.AdamP, dict(gate="channel", predicted="channel"), fp32(p=(2, 2), g=2)),
        (onepass.AdamP, dict(gate="channel", predicted="none"), fp32(p=(4, 4), g=2, m=(8, 4), v=(8, 4))),
        (onepass.AdamP, dict(gate="channel", predicted="channel", speculate=False), fp32(p=(4, 2), g=4)),
        (onepass.SGD, dict(lr=0.1), fp32(p=(2, 2), g=2, m=NONE, v=NONE)),
    ],
)
def test_bytes_of_exact_weights(make: Any, gates: dict[str, Any], want: Streams) -> None:
    """26 with AdamW and AdamP, 42 after a wrong prediction, 32 without one: a remainder is read and written with its parameter."""
    traffic = traffic_of(make, [MATRIX], dtype=BF16, master_weights=True, **gates)
    assert_total(traffic, {**want, "r": want["p"]}, 1.02)


@pytest.mark.parametrize(
    ("make", "gates", "want"),
    [
        (onepass.AdamW, {}, fp32(m=(2, 2), v=(2, 2))),
        (onepass.AdamP, dict(gate="channel", predicted="channel"), fp32(m=(2, 2), v=(2, 2))),
        (onepass.AdamP, dict(gate="channel", predicted="none"), fp32(p=(8, 8), m=(4, 2), v=(4, 2))),
    ],
)
def test_bytes_of_short_moments(make: Any, gates: dict[str, Any], want: Streams) -> None:
    """20, and 32 after a wrong prediction; with exact weights 18 and 30."""
    assert_total(traffic_of(make, [MATRIX], state_dtype=BF16, **gates), want, 1.02)
    half = {key: (read / 2, written / 2) for key, (read, written) in want.items() if key in "pg"}
    traffic = traffic_of(make, [MATRIX], dtype=BF16, state_dtype=BF16, master_weights=True, **gates)
    assert_total(traffic, {**want, **half, "r": half["p"]}, 1.02)


def test_bytes_of_stochastic_rounding() -> None:
    """14 with short moments; 18 with AdamP, which decides its gate first."""
    options = dict(dtype=BF16, state_dtype=BF16, stochastic_rounding=True)
    short = fp32(p=(2, 2), g=2, m=(2, 2), v=(2, 2))
    assert_total(traffic_of(onepass.AdamW, [MATRIX], **options), short, 1.02)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], **options), {**short, "p": (4, 2), "g": (4, 0)}, 1.02)


@pytest.mark.parametrize(
    ("make", "gates", "want"),
    [
        (onepass.AdamW, {}, fp32()),
        (onepass.AdamP, dict(gate="channel", predicted="channel"), fp32()),
        (onepass.AdamP, dict(gate="channel", predicted="none"), CORRECTED),
    ],
)
def test_bytes_of_blocks(make: Any, gates: dict[str, Any], want: Streams) -> None:
    """16.02, and 26.02 after a wrong prediction; with exact weights 14.02 and 24.02: a block has a byte of scale for each moment."""
    codes = {
        key: (read / 4 * 257 / 256, written / 4 * 257 / 256) for key, (read, written) in want.items() if key in "mv"
    }
    assert_total(traffic_of(make, [MATRIX], state_dtype="8bit", **gates), {**want, **codes}, 1.03)
    half = {key: (read / 2, written / 2) for key, (read, written) in want.items() if key in "pg"}
    traffic = traffic_of(make, [MATRIX], dtype=BF16, state_dtype="8bit", master_weights=True, **gates)
    assert_total(traffic, {**want, **codes, **half, "r": half["p"]}, 1.03)


def test_bytes_of_blocks_beside_stochastic_rounding() -> None:
    """10.02; 14.02 with AdamP, which decides its gate first."""
    options = dict(dtype=BF16, state_dtype="8bit", stochastic_rounding=True)
    code = (257 / 256, 257 / 256)
    want = {"p": (2, 2), "g": (2, 0), "m": code, "v": code}
    assert_total(traffic_of(onepass.AdamW, [MATRIX], **options), want, 1.03)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], **options), {**want, "p": (4, 2), "g": (4, 0)}, 1.03)


@pytest.mark.parametrize("make", [onepass.AdamW, onepass.AdamP, onepass.SGD])
def test_two_bytes_more_of_float32_gradients(make: Any) -> None:
    options = dict(dtype=BF16, master_weights=True, gate="channel", predicted="channel", lr=0.1)
    narrow, wide = (traffic_of(make, [MATRIX], gradient_dtype=dtype, **options) for dtype in (BF16, torch.float32))
    assert wide.of("g") == (4, 0) and wide.streams == narrow.streams + 2


def test_56_bytes_of_fp64() -> None:
    traffic = traffic_of(onepass.AdamW, [MATRIX], dtype=torch.float64)
    assert_total(traffic, fp32(p=(8, 8), g=8, m=(8, 8), v=(8, 8)), 1.005)


@pytest.mark.parametrize("shapes", LARGE, ids=str)
@pytest.mark.parametrize(
    ("make", "gate"), [(onepass.AdamW, "none"), (onepass.AdamP, "none"), (onepass.AdamP, "channel")]
)
def test_clipping_reads_g_once_more(make: Any, gate: str, shapes: list[tuple[int, ...]]) -> None:
    """32 bytes. torch's clipping reads the gradient twice and writes it: 40 bytes with AdamW."""
    assert_total(traffic_of(make, shapes, gate=gate, predicted=gate, clips=True), fp32(g=8), 1.015)


# ------------------------------------------------------------------ with a second visit


@pytest.mark.parametrize(
    ("gate", "predicted"), [("none", "channel"), ("channel", "none"), ("layer", "none"), ("layer", "channel")]
)
def test_a_correction_reads_p_and_moments_and_writes_p(gate: str, predicted: str) -> None:
    """16 bytes more: 44. With nesterov the correction also reads the gradient, 4 bytes more."""
    wrong = dict(gate=gate, predicted=predicted)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], **wrong), CORRECTED, 1.01)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], nesterov=True, **wrong), {**CORRECTED, "g": (8, 0)}, 1.01)
    sgdp = {**CORRECTED, "v": NONE}
    assert_total(traffic_of(onepass.SGDP, [MATRIX], **MOMENTUM, **wrong), sgdp, 1.01)
    assert_total(traffic_of(onepass.SGDP, [MATRIX], nesterov=True, **MOMENTUM, **wrong), {**sgdp, "g": (8, 0)}, 1.01)


@pytest.mark.parametrize("gate", ["none", "channel"])
@pytest.mark.parametrize("predicted", ["none", "channel"])
def test_gate_stats_read_p_and_g(gate: str, predicted: str) -> None:
    """36 bytes for any prediction; 26 for bfloat16, which never speculates. With project_momentum 28, and a second write of
    the buffer."""
    gates = dict(gate=gate, predicted=predicted)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], **MEASURED, **gates), fp32(p=(8, 4), g=8), 1.01)
    assert_total(traffic_of(onepass.AdamP, [MATRIX], dtype=BF16, **gates), fp32(p=(4, 2), g=4), 1.01)
    buffer = fp32(p=(8, 4), g=8, m=(4, 8 if gate == "channel" else 4), v=NONE)
    assert_total(traffic_of(onepass.SGDP, [MATRIX], **PROJECTED_MOMENTUM, **gates), buffer, 1.01)


def test_a_layer_without_speculation_is_corrected() -> None:
    """The layer gate needs sums of u over all rows: p is written once, after them."""
    want = fp32(p=(12, 4), g=8, m=(8, 4), v=(8, 4))
    assert_total(traffic_of(onepass.AdamP, [MATRIX], gate="layer", **MEASURED), want, 1.01)


@pytest.mark.parametrize(
    ("gate", "predicted", "want"),
    [
        ("none", "none", fp32()),
        ("channel", "none", CORRECTED),
        # Deferred until the sums of all pieces are complete: 12 bytes more.
        ("channel", "channel", fp32(p=(8, 4), m=(8, 4), v=(8, 4))),
        ("none", "channel", fp32(p=(8, 4), m=(8, 4), v=(8, 4))),
    ],
)
def test_a_row_that_is_cut_into_pieces(gate: str, predicted: str, want: Streams) -> None:
    traffic = traffic_of(onepass.AdamP, [(1, 3_000_000)], gate=gate, predicted=predicted)
    assert_total(traffic, want, 1.01)


def test_only_mispredicted_tensors_are_corrected() -> None:
    """One of two matrices: `correct` does not visit a tensor that was predicted right."""
    params = [values(MATRIX, torch.float32, seed) for seed in range(2)]
    opt = onepass.AdamP(params, lr=1e-3, weight_decay=1e-2, backend="emulated")
    for gate, p in zip(("none", "channel"), params, strict=True):
        p.grad = gradient(gate, p, 1)
    traffic = count(opt)  # the first step expects "none"
    assert [verdict.corrected for verdict in opt.last_step().values()] == [False, True]
    assert traffic.of("p") == (6, 6) and traffic.of("m") == (6, 4)


# ------------------------------------------------------------------ traffic of the plan


def test_plan_traffic_of_small_tensors() -> None:
    """1,000 tensors of 64 elements: each has an item and a record in the plan, and with a gate row statistics, coefficients
    of its rows and a verdict. All of these stay in the L2 cache; no operand is read twice."""
    plan = (emulated.limits["item_bytes"] + emulated.limits["tensor_bytes"]) / 64
    vectors = traffic_of(onepass.AdamW, [(64,)] * 1000)
    assert_streams(vectors, fp32())
    assert vectors.of("plan") == (plan, 0) and vectors.of("row_stats") == NONE
    assert vectors.total < 31

    for gate in ("none", "channel"):
        matrices = traffic_of(onepass.AdamP, [(8, 8)] * 1000, gate=gate, predicted=gate)
        assert_streams(matrices, fp32())
        # Read by `update` alone, for the elements and then for what is published, mostly from the first-level cache: `correct`
        # returns after one word. The gate counter is read twice and written.
        assert matrices.of("plan") == pytest.approx((2 * plan, 1 / 64), rel=0.02)
        stored = emulated.limits["row_stats_bytes"] + emulated.limits["verdict_bytes"] + 8 * 8
        assert matrices.of("row_stats")[1] == pytest.approx(stored / 64, rel=0.03)
        assert matrices.total < 38


def test_the_plan_is_read_by_whole_warps() -> None:
    """counting.py relies on this and divides by the warp size."""
    traffic = traffic_of(onepass.AdamW, [MATRIX, (64,), (300, 7)])
    loaded, stored = traffic.moved["plan"]
    assert loaded % emulated.limits["warp"] == 0 and stored == 0


# ------------------------------------------------------------------ counting.py


def test_table() -> None:
    rows = {"AdamW": traffic_of(onepass.AdamW, [MATRIX]), "SGD": traffic_of(onepass.SGD, [MATRIX], **MOMENTUM)}
    header, rule, *lines = table(rows).splitlines()
    assert header == f"| | {' | '.join(OPERANDS)} | all |"
    assert rule.count("|") == header.count("|")
    assert lines == [
        "| AdamW | 4+4 | 4+0 | 4+4 | 4+4 | 0+0 | 0.09+0 | 0+0 | 28.09 |",
        "| SGD | 4+4 | 4+0 | 4+4 | 0+0 | 0+0 | 0.09+0 | 0+0 | 20.09 |",
    ]
