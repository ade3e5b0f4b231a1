"""Public names and signatures: each class is a drop-in replacement for torch's or adamp's."""

from __future__ import annotations

import doctest
import inspect
import re
from typing import Any

import adamp
import pytest
import torch

import onepass
from onepass.arguments import OF_TORCH
from records import RECORDS, each_optimizer

ADAM: dict[str, Any] = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
SGD: dict[str, Any] = dict(momentum=0, dampening=0, weight_decay=0, nesterov=False)
GATE: dict[str, Any] = dict(delta=0.1, wd_ratio=0.1)
EVERYWHERE: dict[str, Any] = dict(
    maximize=False,
    decouple_lr=False,
    master_weights=False,
    state_dtype=None,
    stochastic_rounding=False,
    seed=0,
    capturable=False,
    backend="auto",
)
# Arguments of torch that are in no param group.
AMSGRAD: dict[str, Any] = dict(amsgrad=False)
NO_CHOICE: dict[str, Any] = dict(foreach=None, fused=None, differentiable=False)

POSITIONAL: dict[str, dict[str, Any]] = {
    "Adam": {**ADAM, "weight_decay": 0, **AMSGRAD},
    "AdamW": {**ADAM, "weight_decay": 1e-2, **AMSGRAD},
    "AdamProx": {**ADAM, "weight_decay": 1e-2, **AMSGRAD},
    "AdamProxL2": {**ADAM, "weight_decay": 1e-2, **AMSGRAD},
    "AdamP": {**ADAM, "weight_decay": 0, **GATE, "nesterov": False},
    "SGD": {"lr": 1e-3, **SGD},
    "SGDP": {"lr": None, **SGD, "eps": 1e-8, **GATE},
}
KEYWORD: dict[str, dict[str, Any]] = {
    "Adam": {"decoupled_weight_decay": False},
    "AdamP": {"decay": "decoupled", "projection": "auto", "speculate": True, **AMSGRAD},
    "SGDP": {"decay": "decoupled", "projection": "auto", "project_momentum": False, "speculate": True},
}


@each_optimizer
def test_arguments(record: Any) -> None:
    """The signature, the docstring and the param groups list the same arguments."""
    positional, keyword = POSITIONAL[record.name], {**KEYWORD.get(record.name, {}), **EVERYWHERE, **NO_CHOICE}
    signature = inspect.signature(record.make)
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    for kind, arguments in zip(kinds, ({"params": inspect.Parameter.empty, **positional}, keyword), strict=True):
        assert {p.name: p.default for p in signature.parameters.values() if p.kind is kind} == arguments
    assert all(p.kind in kinds for p in signature.parameters.values())
    for name in signature.parameters:
        assert re.search(rf"^        (\w+, )?{name}(, \w+)?: ", record.make.__doc__, flags=re.MULTILINE), name
    # By position, as in call sites written for torch or adamp.
    values = {**positional, "lr": 0.25}
    opt = record.make([torch.zeros(1)], *values.values(), backend="reference")
    given = {**values, **keyword, "backend": "reference"}
    assert opt.defaults == {name: value for name, value in given.items() if name not in OF_TORCH}
    assert opt.param_groups[0].keys() == {"params", *opt.defaults}


@pytest.mark.parametrize("theirs", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, adamp.AdamP, adamp.SGDP])
def test_arguments_of_torch_and_adamp(theirs: Any) -> None:
    """Ours include all arguments of theirs, and the positional ones are equal."""
    here, there = (
        list(inspect.signature(made).parameters.values()) for made in (getattr(onepass, theirs.__name__), theirs)
    )
    assert {p.name for p in there} <= {p.name for p in here}
    by_position = [[p.name for p in each if p.kind is not p.KEYWORD_ONLY] for each in (here, there)]
    assert by_position[0] == by_position[1]


def test_names() -> None:
    assert set(RECORDS) | {"GATES", "LastStep", "Optimizer", "Verdict", "__version__", "backends"} == set(
        onepass.__all__
    )
    assert all(issubclass(record.make, onepass.Optimizer) for record in RECORDS.values())
    assert issubclass(onepass.Optimizer, torch.optim.Optimizer)
    with pytest.raises(TypeError, match="is the base class; use one of its subclasses"):
        onepass.Optimizer([torch.zeros(1)], {})
    assert list(onepass.backends()) == ["cpu", "cuda", "triton", "reference"]


@pytest.mark.parametrize("name", RECORDS)
def test_examples_of_docstrings_run(name: str) -> None:
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(onepass, name), name)
    assert len(example.examples) >= 5 and f"onepass.{name}(" in example.docstring
    runner = doctest.DocTestRunner()
    assert runner.run(example).failed == 0
