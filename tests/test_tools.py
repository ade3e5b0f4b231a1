"""The examples as they are run from a shell: what they print says that they learn."""

from __future__ import annotations

import os
import re
import runpy
from functools import partial
from pathlib import Path

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"
FOLDER = Path(__file__).parents[1] / "examples" / "tools"
LOSSES = {
    "hf_trainer": ("transformers", r"'loss': '([\d.]+)'"),
    "accelerate_loop": ("accelerate", r"epoch ([\d.]+), of the last ([\d.]+)"),
    "compiled": ("torch", r"side: +([\d.]+) .* ([\d.]+)"),
    "in_backward": ("torch", r"([\d.]+) gradients left: 0"),
}


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


def test_lightning_fits(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / "lightning_module.py"), run_name="__main__")
    out, err = capfd.readouterr()
    assert (out + err).count("`max_epochs=30` reached") == 2
