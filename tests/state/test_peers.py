"""State dicts that other libraries' optimizers have written, loaded by the recipes of docs/migration.md: the next step is theirs."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from oracles import Arguments
from paths import ROOT, TESTS

BF16 = torch.bfloat16
PEERS = TESTS / "checkpoints" / "peers"


def recipe(name: str) -> Any:
    """A function of docs/migration.md."""
    text = (ROOT / "docs" / "migration.md").read_text()
    (block,) = re.findall(rf"```python\n(def {name}\(.*?)```", text, flags=re.DOTALL)
    namespace: dict[str, Any] = {"torch": torch}
    exec(block, namespace)
    return namespace[name]


def file_of(name: str) -> Any:
    (path,) = PEERS.glob(f"{name}-*.pt")
    return torch.load(path, weights_only=True)


def next_step(written: Any, saved: Any, **options: Any) -> tuple[Any, list[Tensor]]:
    params = [p.clone() for p in written["params"]]
    opt = onepass.AdamW(params, **written["arguments"], **options)
    opt.load_state_dict(saved)
    for p, g in zip(params, written["gradient"], strict=True):
        p.grad = g.clone()
    opt.step()
    assert [float(opt.state[p]["step"]) for p in params] == [4.0, 4.0]
    return opt, params


def assert_near(params: list[Tensor], written: Any, of_a_step: float) -> None:
    """Within this part of what the peer's step has changed, on average."""
    for p, before, after in zip(params, written["params"], written["after"], strict=True):
        moved = (after.float() - before.float()).abs().mean()
        assert moved > 1e-3
        assert (p.float() - after.float()).abs().mean() < of_a_step * moved


@pytest.mark.parametrize("options", [{}, {"state_dtype": BF16}])
def test_bitsandbytes(options: Arguments) -> None:
    written = file_of("bitsandbytes")
    saved = recipe("of_bitsandbytes")(written["state"])
    kinds = [set(own) for own in saved["state"].values()]
    assert kinds == [{"step", "exp_avg", "exp_avg_sq"}] * 2
    assert_near(next_step(written, saved, **options)[1], written, 0.05)


@pytest.mark.parametrize("options", [{}, {"state_dtype": BF16}])
def test_optimi(options: Arguments) -> None:
    """Its weights are known to 2^-16 of themselves."""
    written = file_of("optimi")
    params = written["params"]
    exact = [
        p.float() + own["kahan_comp"].float() for p, own in zip(params, written["state"]["state"].values(), strict=True)
    ]
    saved = recipe("of_optimi")(written["state"], params)
    group = {**saved["param_groups"][0], "params": None, "lr": None}
    assert group["betas"] == (0.9, 0.99) and not {"beta1", "step"} & group.keys()
    opt, moved = next_step(written, saved, master_weights=True, **options)
    assert_near(moved, written, 0.25)  # it multiplies bfloat16 weights by their decay
    again = onepass.AdamW([p.clone() for p in params], master_weights=True, **written["arguments"])
    again.load_state_dict(saved)
    for p, x in zip(again.param_groups[0]["params"], exact, strict=True):
        assert torch.equal(again.master(p), x)
    assert opt.param_groups[0]["eps"] == 1e-6


def test_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # which would call a C++ compiler
    optim = pytest.importorskip("torchao.optim")
    p, q = torch.nn.Parameter(torch.linspace(-1, 1, 8192).view(32, 256)), torch.nn.Parameter(torch.ones(8))
    theirs = optim.AdamW8bit([p, q], lr=1e-2)
    for seed in range(2):
        for x in (p, q):
            x.grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        theirs.step()
    ours = onepass.AdamW([p, q], lr=1e-2)
    ours.load_state_dict(recipe("of_torchao")(theirs.state_dict()))
    assert type(ours.state[p]["exp_avg"]) is torch.Tensor
    assert torch.equal(ours.state[p]["exp_avg"], theirs.state[p]["exp_avg"].dequantize())
    assert torch.equal(ours.state[q]["exp_avg"], theirs.state[q]["exp_avg"])
    ours.step()
