"""The examples of precision and of offloading, run as a user would."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import pytest
import torch
from torch import nn

import onepass
from compare import assert_same_bits
from paths import ROOT
from tensors import values

EXAMPLES = ROOT / "examples"
BF16 = torch.bfloat16


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 1)).to(BF16)


@pytest.mark.parametrize("backward", [1, 2])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (onepass.AdamW, dict(lr=1e-2, master_weights=True)),
        (onepass.AdamP, dict(lr=1e-2, master_weights=True, state_dtype=BF16)),
        (onepass.SGD, dict(lr=1e-2, momentum=0.9, stochastic_rounding=True)),
    ],
)
def test_offloaded_steps_have_the_bits_of_others(make: Any, options: dict[str, Any], backward: int) -> None:
    """With accumulated gradients too, and where a layer has none."""
    Offload = runpy.run_path(str(EXAMPLES / "offload.py"))["Offload"]
    here, there = net(), net()
    opt, offload = make(here.parameters(), **options), Offload(there, make, **options)
    for step in range(3):
        for model in (here, there):
            for i in range(backward):
                x = values((32, 8), BF16, 10 * step + i)
                (model(x) if step != 1 else model[:2](x)).square().mean().backward()
        opt.step()
        opt.zero_grad()
        offload.step()
        assert all(p.grad is None for p in there.parameters())
        for p, q, twin in zip(here.parameters(), there.parameters(), offload.twins, strict=True):
            assert_same_bits(p, q, "parameter")
            assert_same_bits(opt.master(p), offload.opt.master(twin), "weight")


def test_the_offload_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert len((EXAMPLES / "offload.py").read_text().splitlines()) <= 70
    runpy.run_path(str(EXAMPLES / "offload.py"), run_name="__main__")
    losses = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert losses[-1] < 0.1 * losses[0]


def test_the_precision_example(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its table shows, on digits alone and in few steps."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", ["precision.py"])
    example = runpy.run_path(str(EXAMPLES / "precision.py"))
    demo_data = sys.modules["demo_data"]
    data = demo_data.digits(torch.device("cpu"))
    runs = {name: [example["on_digits"](data, name, 0, 40, "cpu")] for name in example["PRECISIONS"]}
    exact = runs["float32"][0]
    for name, (run,) in runs.items():
        assert run.losses[-1] < 0.8 * run.losses[0]
        assert abs(run.held_out - exact.held_out) < (0.05 if name == "bf16" else 0.01), name
        assert (run.gains == 0) == (name == "bf16"), name
    table = example["table_of"]({"digits": runs, "characters": runs}, 40)
    assert table.row_count == len(runs)
    rows = example["figure_rows"]({"digits": runs, "characters": runs})
    assert {row["precision"] for row in rows} == set(runs)
    assert max(abs(float(row["apart"])) for row in rows if row["precision"] == "float32") == 0
