"""Which backend steps which param group, and why one cannot be had."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from . import cuda, native, triton
from .hyper import Hyper
from .last_step import Seen, seen_on_host
from .reference import Verdict
from .reference import square_sum as reference_square_sum
from .reference import step as reference_step
from .scaling import Scaling

if TYPE_CHECKING:
    from .optimizer import Optimizer


class Runner(Protocol):
    """Steps the groups of one backend. Nothing but `run` writes to a parameter, a moment or a step count."""

    name: str
    indices: list[int]  # of its groups
    capturable: bool  # whether the device can count its steps, so that they can be captured into a CUDA graph

    def bind(self, state: Any, first: list[Tensor]) -> None:
        """Takes the optimizer's state; `first` lists the parameters whose moments were made for this step."""

    def ready(self, groups: list[dict[str, Any]], hypers: list[Hyper]) -> bool:
        """Looks at every tensor of the coming step; False if anything is not as it was when it was bound."""

    def square_sum(self) -> Tensor:
        """The sum of squares over all gradients, float64, on their device. Only after `ready` said true."""

    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        """Performs the step. Only after `ready` said true."""

    def let_go(self) -> None:
        """Releases the gradients that `ready` has looked at, if no step follows."""

    def verdicts(self) -> list[Seen]:
        """What the gates saw at the last step, copied without waiting for the device; empty if none did."""


class ReferenceRunner:
    """The specification as a backend: any device, and slow."""

    name = "reference"
    capturable = False

    def __init__(self, optimizer: Optimizer, indices: list[int]):
        self.rule, self.indices = optimizer.rule, indices
        self.groups = [(i, optimizer.param_groups[i]) for i in indices]
        self.bound = False
        self.last: dict[Tensor, Verdict] = {}

    def bind(self, state: Any, first: list[Tensor]) -> None:
        self.state, self.first, self.bound = state, {id(p) for p in first}, True

    def ready(self, groups: list[dict[str, Any]], hypers: list[Hyper]) -> bool:
        # Bound anew for every step: this is the specification, and checking everything is the safe thing to do.
        bound, self.bound = self.bound, False
        return bound

    def square_sum(self) -> Tensor:
        return reference_square_sum([p.grad for _, group in self.groups for p in group["params"] if p.grad is not None])

    @torch.no_grad()
    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        if scaling.skips:
            return
        self.last = {}
        for i, group in self.groups:
            h = replace(hypers[i], grad_scale=hypers[i].grad_scale * scaling.factor)
            for p in group["params"]:
                if p.grad is not None:
                    own = self.state.get(p, {})
                    verdict = reference_step(self.rule, p, p.grad, own, h, id(p) in self.first)
                    if verdict is not None:
                        self.last[p] = verdict

    def let_go(self) -> None:
        pass  # it keeps none

    def verdicts(self) -> list[Seen]:
        return seen_on_host(self.last)


_RUNNERS: dict[str, Callable[[Optimizer, list[int]], Runner]] = {
    "cpu": native.CpuRunner,
    "cuda": cuda.CudaRunner,
    "triton": triton.TritonRunner,
    "reference": ReferenceRunner,
}
Backend = Literal["auto", "cpu", "cuda", "triton", "reference"]
NAMES: tuple[str, ...] = get_args(Backend)
_warned: set[str] = set()


def backends() -> dict[str, str | None]:
    """Every backend's name with None if it can be used, else a sentence saying why not and what to do."""
    return {
        "cpu": native.unavailable(),
        "cuda": cuda.unavailable(),
        "triton": triton.unavailable(),
        "reference": None,
    }


def check_name(name: Any) -> None:
    """Raises if `name` is no backend, or names one that is not there."""
    if name not in NAMES:
        raise ValueError(f"backend must be one of {', '.join(map(repr, NAMES))}, got {name!r}")
    reason = None if name == "auto" else backends().get(name)
    if reason is not None:
        raise RuntimeError(f"backend={name!r} cannot be used: {reason}")


def resolve(name: str, device: torch.device) -> str:
    """The backend that `name` stands for on `device`."""
    if name == "auto":
        compiled = {"cpu": native, "cuda": cuda}.get(device.type)
        reason = compiled.unavailable() if compiled else f"onepass has no kernels for {device.type} tensors."
        if reason is None:
            return device.type
        if device.type == "cuda":  # which is what torch calls AMD's too
            without_triton = triton.unavailable()
            if without_triton is None:
                return "triton"
            reason = f"{reason} {without_triton}"
        if reason not in _warned:
            _warned.add(reason)
            warnings.warn(f"onepass: stepping with the slow reference backend. {reason}", stacklevel=callers_level())
        return "reference"
    check_name(name)
    if name in ("cpu", "cuda") and device.type != name:
        raise ValueError(
            f"backend={name!r} steps {name.upper()} tensors, got parameters on {device}; use backend='auto'"
        )
    if name == "triton" and device.type != ("cpu" if triton.interpreted() else "cuda"):
        raise ValueError(
            f"backend='triton' steps CUDA and ROCm tensors, or CPU tensors where TRITON_INTERPRET=1 is in the environment, "
            f"got parameters on {device}; use backend='auto'"
        )
    return name


def callers_level() -> int:
    """The stacklevel that makes a warning point at the line that called into onepass, or into torch on the way."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("onepass", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def runners_for(optimizer: Optimizer) -> list[Runner]:
    """One runner for each backend that the optimizer's groups ask for, and each device."""
    indices: dict[tuple[str, torch.device], list[int]] = {}
    for i, group in enumerate(optimizer.param_groups):
        if group["params"]:
            device = group["params"][0].device
            indices.setdefault((resolve(group["backend"], device), device), []).append(i)
    runners = [_RUNNERS[name](optimizer, members) for (name, _), members in indices.items()]
    for runner, (name, device), members in zip(runners, indices, indices.values(), strict=True):
        for i in members:
            if optimizer.param_groups[i]["capturable"] and not runner.capturable:
                raise ValueError(
                    f"param group {i}: capturable=True is for steps that are captured into a CUDA graph, got parameters "
                    f"on {device} with backend {name!r}; use capturable=False"
                )
    return runners
