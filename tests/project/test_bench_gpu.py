"""The GPU bench (bench/gpu.py), run without a GPU: everything but the timing."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import emulated_backend  # noqa: F401  the backend "emulated"
from paths import BENCH

sys.path.append(str(BENCH))
import cases
import check
import cpu_cases
import gpu_cases
import gpu_report
import harness
import inputs
import precision
import tables
import targets
from gpu_clock import Effort, Gpu
from rehearsal import Rehearsal
from shapes import llama_shapes, numel_of


def load_main() -> Any:
    """Loads bench/gpu.py by path; `import gpu` would find the package tests/support/gpu."""
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


main = load_main()

STORED = [case for _, case in precision.cases()]

ADAMW, ADAMP, SGDP = map(gpu_cases.on_each, (cases.ADAMW, cases.ADAMP, cases.SGDP))
AT_ONCE = Effort(budget=0, sample=0, rounds=3, host_samples=2, warm=0)


def case_of(*contenders: cases.Contender, **changed: Any) -> cases.Case:
    return cases.Case(**{"name": "a", "title": "A", "shapes": ((6, 20), (13,)), "contenders": contenders, **changed})


def timing_of(contender: cases.Contender, *device: float, **other: Any) -> harness.Timing:
    return harness.Timing(contender, {(0, i): seconds for i, seconds in enumerate(device)}, **other)


# ------------------------------------------------------------------ cases


def test_llama_has_one_billion_parameters() -> None:
    assert numel_of(llama_shapes()) == 1_235_814_400


@pytest.mark.parametrize("quick", [False, True])
def test_cases_are_complete(quick: bool) -> None:
    listed = gpu_cases.cases(quick)
    assert len({case.name for case in listed}) == len(listed)
    for case in listed:
        names = [contender.name for contender in case.contenders]
        assert len(set(names)) == len(names)
        for family in {contender.family for contender in case.contenders}:
            first = next(contender for contender in case.contenders if contender.family == family)
            assert first.name.startswith("torch") and "fused" in first.name
        for contender in case.contenders:
            if contender.backend or "fused" in contender.name:
                assert contender.traffic[case.dtype_of(contender)] > 0
        # Weights, gradients and moments in both dtypes, another set of moments during their creation, and temporaries.
        if not quick:
            assert 2 * case.numel * (4 + 4 + 8 + 4 + 8) < 78 * 2**30


@pytest.mark.parametrize(
    ("listed", "timed"),
    [(targets.CPU, [*cpu_cases.cases(), *STORED]), (targets.GPU, gpu_cases.cases())],
    ids=["cpu", "gpu"],
)
def test_every_target_has_a_timed_case(listed: Any, timed: list[cases.Case]) -> None:
    for target in listed:
        found = [case for case in timed for c in case.contenders if target.fits(case.name, c.name)]
        if target.measure == targets.MEMORY:
            assert any(target.fits("memory", c.name) for c in cpu_cases.MEMORY)
        else:
            assert found
            against = [any(c.name == target.against for c in case.contenders) for case in found]
            assert target.against == targets.BASELINE or any(against)
            for pattern in target.cases.split():
                assert any(fnmatchcase(case.name, pattern) for case in found)


def test_every_optimizer_of_onepass_is_timed() -> None:
    ours = ("AdamW", "AdamProx", "AdamProxL2", "AdamP", "AdamP as timm", "SGD", "SGDP", "SGDP as timm")
    assert {f"onepass {name}" for name in ours} < {contender.name for contender in gpu_cases.ALL}


def test_missing_packages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adamp", None)
    absent = [contender for contender in gpu_cases.ALL if cases.missing(contender)]
    assert {"adamp AdamP", "adamp SGDP"} <= {contender.name for contender in absent}
    kept = case_of(*gpu_cases.ALL).without({contender.name for contender in absent})
    assert all(not contender.name.startswith("adamp") for contender in kept.contenders)


# ------------------------------------------------------------------ the harness


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["random", "tangent"])
def test_contenders_compute_correct_steps(dtype: torch.dtype, kind: str) -> None:
    for contender in gpu_cases.ALL:
        fits = dtype == contender.dtype if contender.dtype else dtype == torch.float32 or contender.backend
        if fits and not cases.missing(contender):
            assert check.check(contender, dtype, kind, Rehearsal("emulated")) <= 1


def test_a_wrong_contender_is_not_timed() -> None:
    adamw = ADAMW[0]
    wrong = replace(adamw, twin_options={"betas": (0.8, 0.999)})
    with pytest.raises(RuntimeError, match=r"onepass AdamW is .* tolerances from the reference"):
        check.check(wrong, torch.float32, "random", Rehearsal())
    names, right = check.check_all([case_of(wrong, gpu_cases.TORCH_FUSED)], Rehearsal(), print)
    assert names == {"onepass AdamW"} and list(right) == ["torch AdamW fused"]


def test_gpu_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Gpu` with a mocked torch.cuda: the calls and their order."""
    asked: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool):
            assert enable_timing

        def record(self) -> None:
            asked.append("record")

        def synchronize(self) -> None:
            asked.append("wait")

        def elapsed_time(self, end: Any) -> float:
            return 6.0

    class Stream:
        def wait_stream(self, other: Any) -> None:
            asked.append("wait_stream")

    cuda = {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": lambda: "graph",
        "current_stream": Stream,
        "get_device_properties": lambda device: SimpleNamespace(name="none", L2_cache_size=50),
        "stream": lambda stream: contextlib.nullcontext(),
        "graph": lambda graph: contextlib.nullcontext(),
        **{name: lambda name=name: asked.append(name) for name in ("synchronize", "empty_cache")},
        "_sleep": lambda cycles: asked.append("sleep"),
    }
    for name, answer in cuda.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    gpu = Gpu()
    assert gpu.seconds(lambda: asked.append("step"), 3, plugged=True) == pytest.approx(2e-3)
    assert asked == ["sleep", "record", "step", "step", "step", "record", "wait"]
    asked.clear()
    assert gpu.graph_of(lambda: asked.append("step")) == "graph"
    assert asked == ["wait_stream", "step", "step", "wait_stream", "step"]
    gpu.release()
    assert gpu.cache_bytes == 50 and gpu.about()["device"] == "none"


@pytest.mark.parametrize("gradients", ["random", "tangent", "fixed"])
def test_a_case_is_timed(gradients: str) -> None:
    """Includes a captured step of onepass, and a failing contender, which does not affect the others."""
    broken = replace(gpu_cases.TORCH_FOREACH, name="broken", options={"fused": True, "foreach": True})
    contenders = (gpu_cases.TORCH_FUSED, *ADAMP, broken, gpu_cases.TORCH_SGD, *SGDP)
    case = case_of(*contenders, gradients=gradients)
    timings = harness.time_case(case, Rehearsal("emulated", AT_ONCE))
    assert [timing.contender for timing in timings.values()] == list(contenders)
    for timing in timings.values():
        if timing.contender is broken:
            assert "fused" in timing.failed and not timing.seconds
        else:
            assert len(timing.seconds) == 3 and min(timing.seconds.values()) > 0 and len(timing.host) == 2
            assert bool(timing.graph) == timing.contender.graph
    if gradients == "tangent":
        assert timings["onepass AdamP"].corrected == [0]  # every prediction is right after the first steps
    rows = gpu_report.rows_of(case, timings, 1e9, 0)
    assert "broken: not timed" in gpu_report.case_table(case, rows, 0)


def test_states_are_shared() -> None:
    case = case_of(gpu_cases.TORCH_FUSED, ADAMW[0])
    clock = Rehearsal()
    model = inputs.Model(case, clock.device)
    entries = [harness.Entry(timing_of(c), model, clock, batch=0) for c in case.contenders]
    for p in model.parameters[torch.float32]:
        a, b = (entry.optimizer.state[p] for entry in entries)
        assert a["exp_avg"] is b["exp_avg"] and a["exp_avg_sq"] is b["exp_avg_sq"] and a["step"] is not b["step"]


def test_tangent_gradients_are_orthogonal() -> None:
    case = case_of(*ADAMP, gradients="tangent")
    model = inputs.Model(case, torch.device("cpu"))
    model.give(model.parameters[torch.float32], 3)
    p = model.parameters[torch.float32][0].double()
    g = model.parameters[torch.float32][0].grad.double()
    assert float(((p * g).sum(1).abs() / (p.norm(dim=1) * g.norm(dim=1))).max()) < 1e-6


def test_random_gradients_change() -> None:
    model = inputs.Model(case_of(*ADAMP), torch.device("cpu"))
    given = []
    for number in range(2):
        model.give(model.parameters[torch.float32], number)
        given.append(model.parameters[torch.float32][0].grad)
    assert given[0].shape == given[1].shape and not torch.equal(*given)


# ------------------------------------------------------------------ the report

LLAMA = case_of(
    gpu_cases.TORCH_FUSED,
    ADAMW[0],
    ADAMP[0],
    cases.THEIR_ADAMP[0],
    name="llama-1b",
    shapes=((1000, 1000),),
)


def llama_rows(adamw: float, adamp: float = 29e-6, theirs: float = 400e-6, host: float = 50e-6) -> list[dict]:
    seconds = (30e-6, adamw, adamp, theirs)
    timings = {c.name: timing_of(c, s, s, s, host=[host]) for c, s in zip(LLAMA.contenders, seconds, strict=True)}
    return gpu_report.rows_of(LLAMA, timings, 1e12, 0)


def test_rows() -> None:
    row = llama_rows(28e-6)[1]
    assert row["device_us"] == row["q1_us"] == row["q3_us"] == 28
    assert row["bytes_per_parameter"] == 28 and row["gb_per_s"] == 1000 and row["copy_share"] == 1
    assert row["ratio"] == 0.9333 and row["baseline"] == "torch AdamW fused" and row["host_us"] == 50


def verdicts(rows: list[dict]) -> dict[str, bool]:
    return {goal.what: goal.reached for goal in gpu_report.goals(rows)}


def test_predictions_stand_beside_measurements() -> None:
    predicted = tables.shown(BENCH.parent / "docs/prediction.md", "predicted")
    assert {row["model"] for row in predicted} == set(gpu_report.PREDICTED.values())
    assert set(gpu_report.PREDICTED) <= {case.name for case in gpu_cases.cases()}
    rows = [
        {"case": case, "contender": contender, "dtype": dtype}
        for case, contender, dtype in (
            ("gpt2-tangent", "onepass AdamP", "float32"),
            ("llama-1b-bf16", "onepass AdamW", "bfloat16"),
            ("gpt2-tangent", "onepass AdamP (triton)", "float32"),
            ("gpt2", "onepass AdamP", "float32"),
        )
    ]
    gpu_report.add_predictions(rows, "NVIDIA H200", predicted)
    by_model = {row["model"]: row for row in predicted if row["GPU"] == "H200"}
    want = [by_model["GPT-2"]["AdamP, float32"], by_model["Llama 1 B"]["AdamW, bfloat16"]]
    assert [row["predicted_share"] for row in rows] == [*(pytest.approx(float(x[:-1]) / 100) for x in want), None, None]
    gpu_report.add_predictions(rows, "NVIDIA T4", predicted)
    assert all(row["predicted_share"] is None for row in rows)


def test_goals_reached_and_missed() -> None:
    good, bad = verdicts(llama_rows(28e-6)), verdicts(llama_rows(31e-6, 33e-6, 300e-6, 200e-6))
    assert good.keys() == bad.keys() and len(good) == 6
    assert all(good.values()) and not any(bad.values())
    assert verdicts(llama_rows(28e-6, adamp=29.5e-6))["onepass AdamP, time over onepass AdamW"] is False
    small = case_of(gpu_cases.TORCH_FUSED, ADAMW[0], name="1000-vectors", shapes=((64,),) * 1000, launch_bound=True)
    timings = {c.name: timing_of(c, s, s) for c, s in zip(small.contenders, (500e-6, 120e-6), strict=True)}
    rows = gpu_report.rows_of(small, timings, 1e12, 2**20)
    assert rows[1]["in_cache"] == "yes" and rows[1]["gb_per_s"] is None
    assert verdicts(rows)["onepass AdamW, times faster than torch AdamW fused"] is False


def test_triton_goals() -> None:
    contenders = (gpu_cases.TORCH_FUSED, *ADAMW, *ADAMP)
    assert [c.name for c in contenders[2:5:2]] == ["onepass AdamW (triton)", "onepass AdamP (triton)"]

    def of_triton(adamw: float, adamp: float) -> dict[str, bool]:
        case = case_of(*contenders, name="llama-1b", shapes=((1000, 1000),))
        seconds = (30e-6, 28e-6, adamw, 29e-6, adamp)
        timings = {c.name: timing_of(c, s, s, s) for c, s in zip(contenders, seconds, strict=True)}
        found = verdicts(gpu_report.rows_of(case, timings, 1e12, 0))
        return {what: reached for what, reached in found.items() if "(triton), time" in what}

    assert len(of_triton(29e-6, 30e-6)) == 3 and all(of_triton(29e-6, 30e-6).values())
    assert not any(of_triton(32e-6, 40e-6).values())


def test_tables() -> None:
    rows = llama_rows(28e-6)
    text = gpu_report.case_table(LLAMA, rows, 2**30)
    assert "fits into the L2 cache" in text and "onepass AdamP" in text
    lines = gpu_report.markdown_table(rows).splitlines()
    assert len(lines) == 2 + 4 and len({line.count("|") for line in lines}) == 1
    assert lines[3] == "|  | onepass AdamW | 28* | 50 |  | 28 | 1,000 | 100.0% | 0.933 | torch AdamW fused |"


def test_rows_have_only_listed_fields() -> None:
    about = {**Rehearsal().about(), "date": "", "copy_best_gb_per_s": 1, "copy_gb_per_s": 1}
    for row in llama_rows(28e-6):
        assert {**row, **about}.keys() <= set(gpu_report.FIELDS)


# ------------------------------------------------------------------ the program


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_arguments() -> None:
    given = main.arguments(["--rehearse", "--case", "gpt2", "--out", "there"])
    assert given.quick and given.case == ["gpt2"] and given.out == Path("there")
    assert not main.arguments([]).quick
    with pytest.raises(SystemExit):
        main.arguments(["--case", "nothing"])


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0 and "--quick" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_error_without_a_gpu() -> None:
    done = run()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "needs an NVIDIA GPU" in done.stderr


def test_rehearsal(tmp_path: Path) -> None:
    done = run("--rehearse", "--case", "gpt2", "--case", "gpt2-bf16", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("*-rehearsal-gpt2-gpt2-bf16-quick.csv")
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}
    assert all(row["device_us"] and row["torch"] and row["date"] for row in rows)
    assert "To reach" in done.stdout
    markdown = [line.split(" | ")[1] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert sum(name.startswith("torch AdamW fused") for name in markdown) == 3
    for row in rows:
        assert row["baseline"] in {other["contender"] for other in rows if other["case"] == row["case"]}
