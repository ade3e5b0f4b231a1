"""`python -m onepass`: its commands, and that its self-test detects wrong results."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from onepass import doctor, quick_bench
from onepass.backend import cpu

main = importlib.import_module("onepass.__main__")


def output(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "onepass", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{Path(onepass.__file__).parents[1]}"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_report() -> None:
    """Without a command it is that of `doctor`."""
    said = output()
    for words in (onepass.__version__, torch.__version__, "instruction set", "-ffp-contract=off", "self-test passed"):
        assert words in said
    for name, reason in onepass.backends().items():
        assert name in said
        assert (reason or "usable") in said
    assert "\033" not in said and "OpenMP" not in said


def test_report_for_programs() -> None:
    found = json.loads(output("doctor", "--json"))
    assert found["onepass"] == onepass.__version__ and found["torch"] == str(torch.__version__)
    assert found["backends"].keys() == onepass.backends().keys() and found["backends"]["cpu"] is None
    assert found["instruction_set"] in found["instruction_sets"] and len(found["openmp"]) == 1
    assert found["self_test"]["passed"] and {each["optimizer"] for each in found["self_test"]["results"]} >= {"AdamP"}


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "doctor what can be used on this machine" in said and "bench time a step beside torch's" in said


@pytest.mark.parametrize(
    "arguments", [["fly"], ["bench", "--seconds", "0"], ["bench", "--seconds", "nan"], ["doctor", "--seconds", "1"]]
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(arguments)
    assert "usage: python -m onepass" in capsys.readouterr().err


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main.paint("a", "good") == "a"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main.paint("a", "good") == "\033[32ma\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert main.paint("a", "good") == "a"


def test_two_openmp_runtimes_are_told() -> None:
    found = doctor.findings()
    assert not any("OpenMP" in line for line in doctor.told(found, main.paint))
    found["openmp"] = ["/a/libgomp.so.1", "/b/libomp.so"]
    assert any("/a/libgomp.so.1, /b/libomp.so" in line for line in doctor.told(found, main.paint))


@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=["words", "json"])
def test_an_instruction_set_that_is_not_there(arguments: list[str]) -> None:
    """In one line, and not of Python's."""
    command = [sys.executable, "-m", "onepass", "doctor", *arguments]
    done = subprocess.run(command, env=os.environ | {"ONEPASS_ISA": "sse"}, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said = json.loads(done.stdout)["error"] if arguments else done.stdout.strip()
    assert said.startswith("ONEPASS_ISA=sse is not available on this machine; use one of ") and "\n" not in said


# ------------------------------------------------------------------ bench


def test_bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quick_bench, "SHAPES", ((64, 64), (64,)))
    assert main.main(["bench", "--seconds", "0.001", "--device", "cpu"]) == 0
    heading, *lines, last = [line for line in capsys.readouterr().out.splitlines() if "the load is" not in line]
    assert "in 2 tensors, on CPU" in heading and "medians of 3 rounds" in heading and "over that of torch" in last
    assert len(lines) == len(quick_bench.contenders([torch.ones(2, 2, requires_grad=True)])) == 6
    assert main.main(["bench", "--seconds", "0.001", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ratios"][quick_bench.BASELINE] == 1 and found["parameters"] == 64 * 64 + 64
    for name, ratio in found["ratios"].items():
        assert ratio == found["milliseconds"][name] / found["milliseconds"][quick_bench.BASELINE] > 0


def test_bars_of_the_bench() -> None:
    """As long as the times, and cut off where one is far longer than the others."""
    ratios = {quick_bench.BASELINE: 1.0, "b": 0.5, "c": 2.0, "d": 30.0}
    found: dict[str, Any] = dict(
        what="a net",
        parameters=1,
        tensors=1,
        device="CPU",
        threads=1,
        rounds=3,
        load=1.4,
        milliseconds=ratios,
        ratios=ratios,
    )
    bars = {line.split("  ")[1].strip(): line.split()[-1] for line in [*quick_bench.told(found)][1:-1]}
    assert {name: (bar.count("#"), bar.endswith(">")) for name, bar in bars.items()} == {
        quick_bench.BASELINE: (20, False), "b": (10, False), "c": (40, False), "d": (40, True),
    }  # fmt: skip

    assert not any("Do not trust" in line for line in quick_bench.told(found))
    assert any("the load is 3.5" in line for line in quick_bench.told({**found, "load": 3.5}))


# ------------------------------------------------------------------ self-test


def _spoiled(spoil: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    correct = cpu.CpuBackend.correct

    def spoiled(self: cpu.CpuBackend) -> None:
        correct(self)
        for params in self.params:
            params[0].copy_(spoil(params[0]))

    return spoiled


def passes() -> bool:
    return bool(doctor.self_test(main.paint, main.silent)["passed"])


@pytest.mark.parametrize(
    "spoil",
    [lambda p: p * torch.nan, lambda p: p * 1.01, lambda p: p * (1 + 2.0**-18), lambda p: p * torch.inf],
    ids=["nan", "1% off", "32 units off", "inf"],
)
def test_self_test_detects_wrong_results(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]) -> None:
    monkeypatch.setattr(doctor, "OPTIMIZERS", (onepass.AdamW,))
    assert passes()
    monkeypatch.setattr(cpu.CpuBackend, "correct", _spoiled(spoil))
    assert not passes()


def test_self_test_covers_every_optimizer() -> None:
    assert {cls.__name__ for cls in doctor.OPTIMIZERS} == set(onepass.__all__) - {
        "GATES",
        "LastStep",
        "Optimizer",
        "Verdict",
        "__version__",
        "backends",
    }
