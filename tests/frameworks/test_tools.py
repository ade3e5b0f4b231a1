"""The examples in examples/tools, run as scripts: their printed losses fall."""

from __future__ import annotations

import os
import re
import runpy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import toy
from paths import ROOT

os.environ["HF_HUB_OFFLINE"] = "1"
FOLDER = ROOT / "examples" / "tools"
LOSSES = {
    "hf_trainer": ("transformers", r"'loss': '([\d.]+)'"),
    "accelerate_loop": ("accelerate", r"epoch ([\d.]+), of the last ([\d.]+)"),
    "compiled": ("torch", r"side: +([\d.]+) .* ([\d.]+)"),
    "in_backward": ("torch", r"([\d.]+) gradients left: 0"),
}


SHARDED = ("fsdp2", "tensor_parallel", "fabric_model_parallel", "deepspeed_zero")  # run by test_sharded, test_deepspeed


def test_examples_are_short_and_listed() -> None:
    page = (ROOT / "docs/tools.md").read_text()
    for example in FOLDER.glob("*.py"):
        assert len(example.read_text().splitlines()) <= (60 if example.stem in SHARDED else 40), example.name
        assert example.stem == "toy" or f"(../examples/tools/{example.name})" in page, example.name


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall(
    name: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool, pattern = LOSSES[name]
    pytest.importorskip(tool)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # the default calls a compiler
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    found = [
        loss for losses in re.findall(pattern, capfd.readouterr().out) for loss in re.findall(r"[\d.]+", str(losses))
    ]
    assert len(found) >= 2 and float(found[-1]) < 0.9 * float(found[0])


def test_losses_of_lightning_fall(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    fit, losses, (x, y) = lightning.Trainer.fit, [], toy.data().tensors

    def then_look(trainer: Any, module: Any, *rest: Any) -> None:
        fit(trainer, module, *rest)
        losses.append(torch.nn.functional.mse_loss(module.net(x), y).item())

    monkeypatch.setattr(lightning.Trainer, "fit", then_look)
    runpy.run_path(str(FOLDER / "lightning_module.py"), run_name="__main__")
    before = torch.nn.functional.mse_loss(toy.net()(x), y).item()
    assert len(losses) == 2 and max(losses) < 0.5 * before
