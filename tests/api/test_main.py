"""`python -m onepass`: its report, and that its self-test detects wrong results."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import onepass
from onepass.backend import cpu

main = importlib.import_module("onepass.__main__")


def test_report() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "onepass"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{Path(onepass.__file__).parents[1]}"},
    )
    assert done.returncode == 0, done.stderr
    for words in (onepass.__version__, torch.__version__, "instruction set", "-ffp-contract=off", "self-test passed"):
        assert words in done.stdout
    for name, reason in onepass.backends().items():
        assert name in done.stdout
        assert (reason or "usable") in done.stdout


def _spoiled(spoil: Callable[[Tensor], Tensor]) -> Callable[..., None]:
    correct = cpu.CpuBackend.correct

    def spoiled(self: cpu.CpuBackend) -> None:
        correct(self)
        for params in self.params:
            params[0].copy_(spoil(params[0]))

    return spoiled


@pytest.mark.parametrize(
    "spoil",
    [lambda p: p * torch.nan, lambda p: p * 1.01, lambda p: p * (1 + 2.0**-18), lambda p: p * torch.inf],
    ids=["nan", "1% off", "32 units off", "inf"],
)
def test_self_test_detects_wrong_results(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor], Tensor]) -> None:
    monkeypatch.setattr(main, "OPTIMIZERS", (onepass.AdamW,))
    assert main.self_test()
    monkeypatch.setattr(cpu.CpuBackend, "correct", _spoiled(spoil))
    assert not main.self_test()


def test_self_test_covers_every_optimizer() -> None:
    assert {cls.__name__ for cls in main.OPTIMIZERS} == set(onepass.__all__) - {
        "GATES",
        "LastStep",
        "Optimizer",
        "Verdict",
        "__version__",
        "backends",
    }
