"""The model of bench/predict.py against what can be computed by hand, and its table in docs/prediction.md."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from paths import ROOT

sys.path.append(str(ROOT / "bench"))
import predict
import predict_triton
import tables
from multiprocessor import Costs, Item, Scheduler, Work, simulate
from predict import GPUS, MODELS, Gpu, block_times, layout_of, share, tail
from shapes import numel_of

FREE = Costs(ghz=1.0, latency=1000.0, opening=0.0, publishing=0.0, meeting=0.0)
NOTHING = Work(1e-6, 1e-6)
H200 = next(gpu for gpu in GPUS if gpu.name == "H200")


def test_loads_alone_are_bound_by_latency() -> None:
    """Little's law: bytes in flight over the latency."""
    item = Item(passes=1, rounds=4, round=NOTHING, bytes=4 * 2048.0)
    assert simulate(item, FREE, 4, False) == pytest.approx(16 * 2048 / 1000, rel=0.02)


def test_a_scheduler_is_shared() -> None:
    """Four warps whose work fills an issue slot take turns; one that leaves three of four free does not slow others down."""
    full, light = Work(slots=1000, alone=1000), Work(slots=250, alone=1000)
    no_latency = Costs(1.0, 0.0, 0.0, 0.0, 0.0)
    rates = [
        simulate(Item(1, 1, work, bytes=1.0), no_latency, blocks, False)
        for work, blocks in ((full, 1), (full, 4), (light, 1), (light, 4))
    ]
    assert rates[1] == pytest.approx(rates[0], rel=0.05) and rates[3] == pytest.approx(4 * rates[2], rel=0.05)


def test_a_scheduler_ends_jobs_in_time() -> None:
    s = Scheduler(1.0)
    s.add(0, Work(100, 100))
    s.add(1, Work(50, 100))
    assert s.slowdown() == 1.5 and s.next_end() == 150
    assert s.advance(75) == [] and sorted(s.advance(150)) == [0, 1]


def test_meetings_and_publications_cost() -> None:
    item = Item(1, 4, NOTHING, bytes=1.0)
    costs = Costs(1.0, 1000.0, 0.0, 4000.0, 0.0)
    alone, publishing = (simulate(item, costs, 1, publishes) for publishes in (False, True))
    assert publishing / alone == pytest.approx(16_000 / 20_000, rel=0.05)  # once in four items of 4,000 ns


def test_share_of_a_copy_as_measured() -> None:
    """BabelStream on an H200, which the curve is fitted to."""
    assert [share(x, 1.0) for x in (0.52, 0.79, 1.57)] == pytest.approx([0.52, 0.70, 0.935], abs=0.025)


def test_a_tail() -> None:
    assert tail([3.0] * 8) == pytest.approx(1)
    assert tail([1.0, 1.0, 1.0, 2.0]) == pytest.approx((1 + 0.5) / 1.25)  # the last works at most twice as fast


def test_every_element_falls_to_a_block() -> None:
    layout = layout_of(H200, MODELS["ResNet-50"], "float32", True)
    times = block_times(H200, layout, [1.0] * len(MODELS["ResNet-50"]))
    assert len(times) == 4 * 132 and sum(times) == pytest.approx(25_557_032)


def test_slower_kernels_are_predicted_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the instructions in a round, then without double."""
    before = predict.predict(H200, MODELS["Llama 1 B"], "float32", True).share
    kept = predict.counted()
    twice = {key: {name: 2 * n for name, n in own.items()} for key, own in kept.items()}
    monkeypatch.setattr(predict, "counted", lambda: twice)
    assert predict.predict(H200, MODELS["Llama 1 B"], "float32", True).share < before - 0.05


def test_slow_float64_is_predicted_slower() -> None:
    """Of rows of 64, on a card of 64 times fewer."""
    slow = Gpu("slow", "sm_90", 132, 1.70, 4300, 233472, 1)
    fast, slowed = (predict.predict(gpu, ((100_000, 64),), "float32", True).share for gpu in (H200, slow))
    assert slowed < fast / 2


# ------------------------------------------------------------------ the Triton kernels


def test_warps_that_end_together_wait_for_the_last() -> None:
    """A latency each, then a meeting: of 40 ns in 1,040."""
    item = Item(1, 1, NOTHING, bytes=1.0, warps=8)
    costs = replace(FREE, meeting=40.0)
    apart, together = (simulate(replace(item, ends_together=x), costs, 1, False) for x in (False, True))
    assert apart == pytest.approx(8 / 1000, rel=0.02) and together == pytest.approx(8 / 1040, rel=0.02)


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "programs"),
    [
        (128, 64, 1024, 8),
        (128, 256, 1024, 2),
        (129, 256, 1024, 1),
        (32, 128, 1024, 16),
        (16, 32, 0, 32),
        (32, 64, 60_000, 3),
    ],
)
def test_programs_on_a_multiprocessor(registers: int, threads: int, shared: int, programs: int) -> None:
    own = {"registers": registers, "threads": threads, "shared": shared}
    assert predict_triton.resident(H200, own) == programs


@pytest.mark.parametrize("model", MODELS)
def test_every_element_is_in_a_launch(model: str) -> None:
    plan = predict_triton.plan_for(MODELS[model], "float32", True)
    found = sum(predict_triton.elements_of(plan, launch) for launch in plan.launches)
    assert found == numel_of(MODELS[model])


def test_launches_of_a_predicted_step() -> None:
    names = [name for name, _ in predict_triton.times_of(H200, MODELS["GPT-2"], "bfloat16", True)]
    assert names == [*["gate_stats"] * 2, "decide", "step", *["update"] * 2, "decide", *["correct"] * 2]


def test_slower_programs_are_predicted_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    before = predict_triton.predict(H200, MODELS["GPT-2"], "float32", True).share
    known = predict_triton.counted()
    for field in ("instructions", "registers"):
        slower = {key: own | {field: (1 + (key[1] == "update")) * own[field]} for key, own in known.items()}
        with monkeypatch.context() as patch:
            patch.setattr(predict_triton, "counted", partial(dict, slower))
            assert predict_triton.predict(H200, MODELS["GPT-2"], "float32", True).share < before - 0.05


# ------------------------------------------------------------------ the pages


@pytest.mark.parametrize(
    ("name", "model", "known"),
    [
        ("predicted", predict, GPUS),
        ("predicted_triton", predict_triton, [g for g in GPUS if g.arch in predict_triton.ARCHS]),
    ],
)
def test_the_tables_in_the_docs(name: str, model: Any, known: Sequence[Gpu]) -> None:
    """The rows of two GPUs; `make bench-tables` writes all."""
    page = (ROOT / "docs/prediction.md").read_text(encoding="utf-8")
    (shown,) = (match[3].splitlines()[2:] for match in tables.BLOCK.finditer(page) if match[1] == name)
    named = [tuple(line.strip("| ").split(" | ")[:2]) for line in shown]
    assert named == [(gpu.name, model) for gpu in known for model in MODELS]
    chosen = [gpu for gpu in known if gpu.name in ("H200", "RTX 5090")]
    assert chosen
    for row in model.prediction_rows(chosen):
        assert f"| {' | '.join(row.values())} |" in shown, "write the table with `make bench-tables`"
