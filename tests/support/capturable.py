"""Hyper-parameters that are device tensors. The emulated device is the CPU, so CPU tensors count as device tensors; see emulated_backend.py."""

from __future__ import annotations

from typing import Any

import torch

from drive import gradient_at, parameters, parameters_of
from emulated_backend import emulated
from oracles import Arguments
from records import Record

LIVE = ("lr", "weight_decay", "momentum")


def on_device(arguments: Arguments, dtype: torch.dtype = torch.float64) -> Arguments:
    """Arguments with a device tensor for every number that may be one. float64 is the precision of a Python float."""
    out = {name: torch.tensor(value, dtype=dtype) if name in LIVE else value for name, value in arguments.items()}
    if "betas" in out:
        out["betas"] = tuple(torch.tensor(beta, dtype=dtype) for beta in out["betas"])
    return out


def with_betas(record: Record, arguments: Arguments) -> Arguments:
    return {"betas": (0.9, 0.999), **arguments} if record.name.startswith("Adam") else dict(arguments)


def make(record: Record, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    return record.make(parameters(dtype), backend="emulated", **arguments)


def moved(arguments: Arguments, time: int) -> Arguments:
    """Hyper-parameters of a later step."""
    factors = {"lr": 0.9**time, "weight_decay": 1.1**time, "momentum": 0.95**time}
    out = {name: value * factors.get(name, 1) for name, value in arguments.items() if name in LIVE}
    if "betas" in arguments:
        out["betas"] = tuple(beta * 0.99**time for beta in arguments["betas"])
    return out


def write(opt: Any, new: Arguments) -> None:
    """Writes into the tensors of the group, in place."""
    group = opt.param_groups[0]
    for name, value in new.items():
        for to, number in zip(group[name], value, strict=True) if name == "betas" else [(group[name], value)]:
            to.fill_(number)


def capture(opt: Any) -> None:
    """Captures a step without taking it."""
    emulated.set_capturing(True)
    opt.step()
    emulated.set_capturing(False)


def put(opt: Any, time: int) -> None:
    """Writes new gradients into the tensors that a captured step reads."""
    for p in parameters_of(opt):
        p.grad.copy_(gradient_at(p, time))
