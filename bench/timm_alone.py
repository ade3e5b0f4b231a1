"""The optimizers of timm, each from its own file: timm itself takes seconds to import, and needs torchvision."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import torch

# What timm's factory (`create_optimizer_v2`) passes besides lr and weight_decay. The classes themselves have the defaults
# of the adamp package.
ADAMP = {"nesterov": True, "wd_ratio": 0.01}
SGDP = {"nesterov": True, "momentum": 0.9}


def optimizer(module: str, name: str) -> type[torch.optim.Optimizer]:
    """Class `name` of timm/optim/<module>.py; ImportError where timm is not installed."""
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("No module named 'timm'")
    alone = "timm_optimizers_alone"
    package = sys.modules.setdefault(alone, types.ModuleType(alone))
    package.__path__ = [f"{spec.submodule_search_locations[0]}/optim"]
    return getattr(importlib.import_module(f"{alone}.{module}"), name)
