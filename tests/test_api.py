"""The public names, and arguments that let each class take the place of torch's or adamp's."""

from __future__ import annotations

import inspect
from typing import Any

import adamp
import pytest
import torch

import onepass
from records import RECORDS, each_optimizer

ADAM: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
SGD: dict[str, Any] = dict(momentum=0, dampening=0, weight_decay=0, nesterov=False)
GATE: dict[str, Any] = dict(delta=0.1, wd_ratio=0.1)
EVERYWHERE: dict[str, Any] = dict(maximize=False, decouple_lr=False, capturable=False, backend="auto")
REQUIRED = inspect.Parameter.empty

POSITIONAL: dict[str, dict[str, Any]] = {
    "Adam": {**ADAM, "weight_decay": 0},
    "AdamW": {**ADAM, "weight_decay": 1e-2},
    "AdamProx": {**ADAM, "weight_decay": 1e-2},
    "AdamProxL2": {**ADAM, "weight_decay": 1e-2},
    "AdamP": {**ADAM, "weight_decay": 0, **GATE, "nesterov": False},
    "SGD": {"lr": 1e-3, **SGD},
    "SGDP": {"lr": REQUIRED, **SGD, "eps": 1e-8, **GATE},
}
KEYWORD: dict[str, dict[str, Any]] = {
    "AdamP": {"decay": "decoupled", "speculate": True},
    "SGDP": {"decay": "decoupled", "project_momentum": False, "speculate": True},
}


@each_optimizer
def test_arguments(record: Any) -> None:
    made = record.make([torch.zeros(1)], lr=0.5, backend="reference")
    arguments = POSITIONAL[record.name]
    # By position, as a call site that comes from torch or adamp may have them.
    values = {name: 0.25 if default is REQUIRED else default for name, default in arguments.items()}
    by_position = record.make([torch.zeros(1)], *values.values(), backend="reference")
    assert {name: by_position.defaults[name] for name in arguments} == values
    with pytest.raises(TypeError):
        record.make([torch.zeros(1)], *values.values(), False)
    for name, default in {**arguments, **KEYWORD.get(record.name, {}), **EVERYWHERE}.items():
        if name not in ("lr", "backend"):
            assert made.defaults[name] == default
    assert set(made.defaults) == {*arguments, *KEYWORD.get(record.name, {}), *EVERYWHERE}
    plain = record.make([torch.zeros(1)], **({"lr": 0.25} if record.name == "SGDP" else {}))
    assert (plain.defaults["lr"], plain.defaults["backend"]) == (values["lr"], "auto")


def test_lr_of_sgdp_is_required() -> None:
    with pytest.raises(TypeError, match="lr"):
        onepass.SGDP([torch.zeros(1)])


@pytest.mark.parametrize("theirs", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, adamp.AdamP, adamp.SGDP])
def test_positions_are_theirs(theirs: Any) -> None:
    names = list(inspect.signature(theirs.__init__).parameters)[2:]
    ours = list(POSITIONAL[theirs.__name__])
    # torch's Adam and AdamW go on with amsgrad, which is not implemented here.
    assert names[: len(ours)] == ours


@each_optimizer
def test_unknown_arguments(record: Any) -> None:
    with pytest.raises(TypeError):
        record.make([torch.zeros(1)], lr=0.1, learning_rate=0.1)


def test_names() -> None:
    assert set(RECORDS) | {"GATES", "LastStep", "Verdict", "__version__", "backends"} == set(onepass.__all__)
    assert all(issubclass(record.make, torch.optim.Optimizer) for record in RECORDS.values())
    assert all(record.make.__doc__ for record in RECORDS.values())
    assert list(onepass.backends()) == ["cpu", "cuda", "triton", "reference"]
