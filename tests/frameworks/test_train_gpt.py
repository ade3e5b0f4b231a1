"""examples/train_gpt.py: it learns, its log has gates, a resumed run is the unbroken one, and so is one of FSDP2."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onepass
from paths import ROOT

pytest.importorskip("tensorboard")
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLE = ROOT / "examples" / "train_gpt.py"
SMALL = ("--size", "1m", "--batch", "2")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *SMALL, *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")


def logged(folder: Path) -> dict[str, dict[int, float]]:
    """By name and step."""
    events = EventAccumulator(str(folder)).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags()["scalars"]}


def test_is_short() -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 150


def test_trains_and_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(monkeypatch, "--steps", "12", "--accumulate", "2", "--out", str(whole))
    seen = logged(whole)
    assert seen["loss"][11] < 0.8 * seen["loss"][0]
    layers = [own.values() for key, own in seen.items() if key.endswith(".q.weight/gate")]
    assert len(layers) == 4 and {value for own in layers for value in own} == {onepass.GATES.index("layer")}

    train = runpy.run_path(str(EXAMPLE))["train"].__globals__
    progress = train["progress"].track
    with monkeypatch.context() as stopped:  # after 6 of its 12 steps
        stopped.setattr(train["progress"], "track", lambda steps, *_, **__: list(progress(steps))[:6])
        run(stopped, "--steps", "12", "--accumulate", "2", "--out", str(parts))
    run(monkeypatch, "--steps", "12", "--accumulate", "2", "--out", str(parts), "--resume")
    assert {key: {**own} for key, own in logged(parts).items()} == seen


@pytest.mark.parametrize("arguments", [("--bf16",), ("--beside",)])
def test_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, arguments: tuple[str, ...]) -> None:
    run(monkeypatch, "--steps", "3", "--out", str(tmp_path), *arguments)
    rows = re.findall(r"(\w+ Adam\w+) +. ([\d.]+) ", capsys.readouterr().out)
    assert [name for name, _ in rows] == (
        ["torch AdamW", "onepass AdamW", "onepass AdamP", "adamp AdamP"]
        if "--beside" in arguments
        else ["onepass AdamP"]
    )
    assert all(3 < float(loss) < 6 for _, loss in rows)


def test_under_torchrun(tmp_path: Path) -> None:
    """Two ranks see twice as much text as one: the same as accumulating twice."""
    folders = [tmp_path / "one", tmp_path / "two"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for folder, command in zip(folders, ([sys.executable], launcher), strict=True):
        more = ["--accumulate", "1" if command is launcher else "2", "--steps", "4", "--out", str(folder)]
        subprocess.run([*command, str(EXAMPLE), *SMALL, *more], env=environment, check=True, capture_output=True)
    one, two = (logged(folder)["norm"] for folder in folders)
    assert one == pytest.approx(two, rel=1e-4)
