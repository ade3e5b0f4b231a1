"""timm's parameter groups: each group has its own weight decay; the other arguments are common."""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
import types
from typing import Any

import pytest
import torch

import onepass
import toy
from tools import assert_same_weights, with_torch_beside


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example with only one file of timm: the whole package would import torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("timm is not installed; `pip install --no-deps timm` is enough")
    (root,) = spec.submodule_search_locations
    for name in ("timm", "timm.optim", "timm.models"):
        module = types.ModuleType(name)
        module.__path__ = [f"{root}/{name.partition('.')[2]}"]
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["timm.models"].group_parameters = None  # needed only by layer-wise groups
    groups = importlib.import_module("timm.optim._param_groups")
    sys.modules["timm.optim"].param_groups_weight_decay = groups.param_groups_weight_decay
    yield importlib.import_module("timm_groups")
    for name in ("timm.optim._param_groups", "timm_groups"):
        sys.modules.pop(name)


def test_groups(example: Any) -> None:
    model = toy.net()
    opt = example.optimizer_for(model)
    assert [group["weight_decay"] for group in opt.param_groups] == [0.0, 0.05]
    assert [{p.dim() for p in group["params"]} for group in opt.param_groups] == [{1}, {2}]
    assert sum(len(group["params"]) for group in opt.param_groups) == len(list(model.parameters()))


def test_example_prints_the_groups(example: Any, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(example.__file__, run_name="__main__")
    assert "weight decay 0.05: [(32, 8), (1, 32)]" in capsys.readouterr().out


def test_steps(example: Any) -> None:
    """Equal to explicit groups and to torch's AdamW on the same groups and gradients; differs from no decay."""
    model, by_hand, without, ours = (toy.net() for _ in range(4))
    losses = example.train(model, example.optimizer_for(model))
    assert losses[-1] < 0.7 * losses[0]
    matrices = [p for p in by_hand.parameters() if p.dim() > 1]
    others = [p for p in by_hand.parameters() if p.dim() < 2]
    groups = [{"params": others, "weight_decay": 0}, {"params": matrices, "weight_decay": 0.05}]
    example.train(by_hand, onepass.AdamP(groups, lr=1e-2))
    assert_same_weights(model, by_hand)
    example.train(without, onepass.AdamP(without.parameters(), lr=1e-2))
    assert not torch.equal(next(model.parameters()), next(without.parameters()))
    beside = []
    example.train(ours, example.optimizer_for(ours, with_torch_beside(beside)))
    assert beside[0].steps == 20
