"""Numbers and flags of a param group, read with every check of their type and range."""

from __future__ import annotations

import math
from collections.abc import Mapping
from operator import index
from typing import Any

import torch
from torch import Tensor


class Values:
    """Reads finite numbers and flags out of a param group; a tensor of one number counts as a number.

    group, index: the param group, and its number, which messages name.
    """

    # The value of a hyper-parameter that only the device can read, for checks on the host: within every bound.
    PLACEHOLDER = 0.5
    ON_DEVICE = ("lr", "weight_decay", "betas[0]", "betas[1]", "momentum", "initial_lr")

    def __init__(self, group: Mapping[str, Any], index: int):
        self.group, self.index = group, index
        self.capturable = self.flag("capturable")
        self.device = group["params"][0].device if self.capturable and group["params"] else None

    def is_on_device(self, value: Any) -> bool:
        """Whether the device reads it at every step: a tensor beside the parameters of a capturable group."""
        return isinstance(value, Tensor) and value.device == self.device and value.numel() == 1

    def __call__(self, name: str, low: float = -math.inf) -> float:
        return self._check(name, self.group[name], low)

    def flag(self, name: str) -> bool:
        truth = truth_of(self.group[name])
        if truth is None:
            raise TypeError(f"param group {self.index}: {name} must be True or False, got {self.group[name]!r}")
        return truth

    def seed(self, name: str) -> int:
        """A whole number of 64 bits without sign."""
        value = self.group.get(name, 0)  # absent from old pickles
        if isinstance(value, bool | Tensor) or not hasattr(value, "__index__"):
            raise TypeError(f"param group {self.index}: {name} must be an int, got {value!r}")
        number = index(value)
        if not 0 <= number < 1 << 64:
            raise ValueError(f"param group {self.index}: {name} must be at least 0 and below 2**64, got {number}")
        return number

    def betas(self) -> tuple[float, float]:
        betas = self.group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"param group {self.index}: betas must be two numbers, got {betas!r}")
        return (
            self._check("betas[0]", betas[0], 0.0, below=1.0),
            self._check("betas[1]", betas[1], 0.0, below=1.0),
        )

    def _check(self, name: str, value: Any, low: float, below: float = math.inf) -> float:
        if isinstance(value, bool | str) or holds_truth(value) or not hasattr(value, "__float__"):
            raise TypeError(f"param group {self.index}: {name} must be a number, got {value!r}")
        if getattr(value, "numel", lambda: 1)() != 1:
            raise ValueError(
                f"param group {self.index}: {name} must hold one number, got a tensor of shape {tuple(value.shape)}"
            )
        if self.is_on_device(value) and name in self.ON_DEVICE:
            return self.PLACEHOLDER
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"param group {self.index}: {name} must be a real number, got {value!r}") from error
        if not low <= number < below:
            allowed = "a finite number" if low == -math.inf else f"at least {low:g}"
            allowed += "" if low == -math.inf else " and finite" if below == math.inf else f" and below {below:g}"
            scheduler = self._scheduler(name) if number < low else ""
            raise ValueError(f"param group {self.index}: {name} must be {allowed}, got {number}{scheduler}")
        if math.isinf(number):
            raise ValueError(f"param group {self.index}: {name} must be a finite number, got {number}")
        return number

    def _scheduler(self, name: str) -> str:
        """What to do about a value below 0 in a group with a scheduler, which leaves keys there. torch's own
        optimizers step with it."""
        initial_lr, base_momentum = self.group.get("initial_lr"), self.group.get("base_momentum")
        if name == "lr" and initial_lr is not None:
            start = f"it started at {initial_lr}"
        elif name in ("momentum", "betas[0]") and base_momentum is not None:
            start = f"its base_momentum is {base_momentum}"
        else:
            return ""
        return f" ({start}); a scheduler has to end before it goes below 0, or to stop there"


def truth_of(value: Any) -> bool | None:
    """The value of a flag: a bool, 0, 1, or one bool of numpy or torch; None for anything else, such as "false"."""
    if isinstance(value, bool):
        return value
    if (isinstance(value, int) and value in (0, 1)) or (holds_truth(value) and value.ndim == 0):
        return bool(value)
    return None


def holds_truth(value: Any) -> bool:
    """Whether it is an array or a tensor of bools."""
    dtype = getattr(value, "dtype", None)
    return dtype is torch.bool or (dtype is not None and str(dtype) == "bool")
