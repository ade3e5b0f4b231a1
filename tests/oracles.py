"""The optimizers of others that ours are held against, and how their arguments follow from ours."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import adamp
import pytest
import torch

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Oracle:
    """load: returns the class. translate: its arguments for ours, or None if it has no such rule."""

    name: str
    load: Callable[[], type[torch.optim.Optimizer]]
    translate: Callable[[Arguments], Arguments | None]

    def make(self, params: Any, arguments: Arguments) -> torch.optim.Optimizer:
        own = self.translate(arguments)
        assert own is not None
        return self.load()(params, **own)


def sign_of(arguments: Arguments, oracle: Oracle) -> float:
    """What our gradients are multiplied by for an oracle that cannot maximize."""
    return -1.0 if arguments.get("maximize") and "maximize" not in (oracle.translate(arguments) or {}) else 1.0


def _torch(arguments: Arguments) -> Arguments:
    own = {key: value for key, value in arguments.items() if key != "decouple_lr"}
    return {**own, "foreach": False}


def _torch_decoupled(arguments: Arguments) -> Arguments:
    """With a constant lr the paper's wd is initial_lr times torch's."""
    own = _torch(arguments)
    if arguments.get("decouple_lr"):
        own["weight_decay"] = arguments["weight_decay"] / arguments["lr"]
    return own


def _projected(arguments: Arguments) -> Arguments | None:
    ours_only = {"maximize", "speculate", "decay", "project_momentum", "decouple_lr"}
    if arguments.get("decay") == "proximal" or arguments.get("decouple_lr"):
        return None
    return {key: value for key, value in arguments.items() if key not in ours_only}


def _adamp_sgdp(arguments: Arguments) -> Arguments | None:
    # The package projects its buffer, but for nesterov; where there is no momentum that is forgotten at once.
    aliased = not arguments.get("nesterov") and arguments.get("momentum", 0) != 0
    return _projected(arguments) if aliased == bool(arguments.get("project_momentum")) else None


def _timm_sgdp(arguments: Arguments) -> Arguments | None:
    return None if arguments.get("project_momentum") else _projected(arguments)


def _timm(module: str, name: str) -> type[torch.optim.Optimizer]:
    """One optimizer file of timm without timm itself, which imports torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("timm is not installed; `pip install --no-deps timm` is enough")
    alone = "timm_optimizers_alone"
    package = sys.modules.setdefault(alone, types.ModuleType(alone))
    package.__path__ = [f"{spec.submodule_search_locations[0]}/optim"]
    return getattr(importlib.import_module(f"{alone}.{module}"), name)


ADAM = (Oracle("torch", lambda: torch.optim.Adam, _torch),)
ADAMW = (Oracle("torch", lambda: torch.optim.AdamW, _torch_decoupled),)
SGD = (Oracle("torch", lambda: torch.optim.SGD, _torch),)
ADAMP = (
    Oracle("adamp", lambda: adamp.AdamP, _projected),
    Oracle("timm", lambda: _timm("adamp", "AdamP"), _projected),
)
SGDP = (
    Oracle("adamp", lambda: adamp.SGDP, _adamp_sgdp),
    Oracle("timm", lambda: _timm("sgdp", "SGDP"), _timm_sgdp),
)
