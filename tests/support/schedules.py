"""Every learning-rate scheduler of torch, as the tests use it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch.optim import lr_scheduler, swa_utils
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Make = Callable[[Any], Any]


def _made_of_two(opt: Any) -> list[LRScheduler]:
    return [lr_scheduler.ConstantLR(opt, 0.1, 2), lr_scheduler.ExponentialLR(opt, 0.75)]


SCHEDULERS: dict[str, Make] = {
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda epoch: 0.9),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, gamma=0.5),
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [1, 3], gamma=0.5),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, factor=0.5, total_iters=3),
    "LinearLR": lambda opt: lr_scheduler.LinearLR(opt, start_factor=0.25, total_iters=4),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.75),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=8, power=2.0),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, 6),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(opt, 3),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, 0.2, total_steps=8, cycle_momentum=False),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(opt, _made_of_two(opt), [2]),
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(_made_of_two(opt)),
    "ReduceLROnPlateau": lambda opt: ReduceLROnPlateau(opt, factor=0.5, patience=1),
    "SWALR": lambda opt: swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=4),
}

# These set the momentum too, or the first beta.
CYCLES: dict[str, Make] = {
    "CyclicLR with momentum": lambda opt: lr_scheduler.CyclicLR(opt, 0.01, 0.1, step_size_up=2),
    "OneCycleLR with momentum": lambda opt: lr_scheduler.OneCycleLR(opt, 0.2, total_steps=8),
}


def of_torch() -> set[str]:
    """The names of all schedulers that torch has."""
    return {
        name
        for module in (lr_scheduler, swa_utils)
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, LRScheduler) and kind is not LRScheduler and not name.startswith("_")
    }


def advance(schedule: Any) -> None:
    """One step of the schedule; ReduceLROnPlateau gets a constant loss."""
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.step(1.0)
    else:
        schedule.step()
