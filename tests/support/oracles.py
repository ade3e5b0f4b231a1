"""The optimizers of other packages that ours are compared with, and the translation of our arguments to theirs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adamp
import pytest
import torch

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Oracle:
    """load: returns the class. translate: turns our arguments into its own, or None if it has no such rule."""

    name: str
    load: Callable[[], type[torch.optim.Optimizer]]
    translate: Callable[[Arguments], Arguments | None]

    def make(self, params: Any, arguments: Arguments) -> torch.optim.Optimizer:
        own = self.translate(arguments)
        assert own is not None
        return self.load()(params, **own)


def sign_of(arguments: Arguments, oracle: Oracle) -> float:
    """The factor of our gradients for an oracle that cannot maximize."""
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
    if arguments.get("decay") == "proximal" or arguments.get("decouple_lr") or "projection" in arguments:
        return None
    return {key: value for key, value in arguments.items() if key not in ours_only}


def _adamp_sgdp(arguments: Arguments) -> Arguments | None:
    # The package projects its buffer unless nesterov is set; without momentum that has no effect.
    aliased = not arguments.get("nesterov") and arguments.get("momentum", 0) != 0
    return _projected(arguments) if aliased == bool(arguments.get("project_momentum")) else None


def _timm_sgdp(arguments: Arguments) -> Arguments | None:
    return None if arguments.get("project_momentum") else _projected(arguments)


def _timm_optim() -> Path:
    """The folder of timm's optimizers."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("timm is not installed; `pip install --no-deps timm` is enough")
    return Path(spec.submodule_search_locations[0]) / "optim"


def timm_factory(name: str) -> Arguments:
    """The arguments that `timm.optim.create_optimizer_v2` passes to an optimizer besides lr and weight_decay.

    Read from the source of the factory, since importing it imports torchvision.
    """
    tree = ast.parse((_timm_optim() / "_optim_factory.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "OptimInfo":
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            if ast.unparse(given["name"]) == repr(name):
                found = ast.literal_eval(given["defaults"])
                return {**found, **({"momentum": _default_momentum(tree)} if "has_momentum" in given else {})}
    raise LookupError(f"timm's factory registers no {name}")


def _default_momentum(tree: ast.Module) -> float:
    (create,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "create_optimizer_v2")
    names = [argument.arg for argument in create.args.args]
    defaults = dict(zip(names[-len(create.args.defaults) :], create.args.defaults, strict=True))
    return ast.literal_eval(defaults["momentum"])


def _timm(module: str, name: str) -> type[torch.optim.Optimizer]:
    """An optimizer of timm, imported without timm itself, which imports torchvision."""
    alone = "timm_optimizers_alone"
    package = sys.modules.setdefault(alone, types.ModuleType(alone))
    package.__path__ = [str(_timm_optim())]
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
