"""What one step needs to know of a param group: checked, and in the paper's terms.

A param group holds what the user wrote. `Hyper` holds what the rules use: the decay already multiplied by the
learning rate, the sign of `maximize` folded into the gradient's scale. Every backend reads this one record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What an optimizer class is made of.

    family: "adam" (moments m, v) or "sgd" (buffer b).
    moments: the state keys of the moments, as torch.optim or the adamp package names them.
    decay: "l2" (g += wd*p), "decoupled", "proximal", "proximal_l2" (the prox in Adam's own metric), or
        "group": the param group says, "decoupled" or "proximal".
    projected: whether AdamP's projection applies.
    counted: whether a parameter's state has a step count.
    lazy_buffer: torch.optim.SGD's buffer: none while momentum is 0, and the first gradient enters undampened.
    """

    family: str
    moments: tuple[str, ...]
    decay: str
    projected: bool = False
    counted: bool = True
    lazy_buffer: bool = False


@dataclass(frozen=True)
class Live:
    """The hyper-parameters of a group whose steps the device counts, before they are put into `Hyper`'s terms, which the
    device then does at every step. A tensor on the parameters' device is read there if the group is capturable, so that a
    captured graph sees what it is set to.

    decay: "direct" (decoupled or proximal), "l2" or "metric": which field of `Hyper` the weight decay enters.
    identities: of the tensors, by which two of these are compared.
    """

    lr: float | Tensor = field(compare=False)
    weight_decay: float | Tensor = field(compare=False)
    beta1: float | Tensor = field(compare=False)
    beta2: float | Tensor = field(compare=False)
    momentum: float | Tensor = field(compare=False)
    initial_lr: float | Tensor = field(compare=False)
    decay: str
    decouple_lr: bool
    over_one_minus_momentum: bool
    capturable: bool
    identities: tuple[float | int, ...]


@dataclass(frozen=True)
class Hyper:
    """The hyper-parameters of one group at one step, as Python floats (float64).

    decay: q of `p = (1-q)*p - s*u` or `p = (p - s*u)/(1+q)`: lr*wd, or (lr/initial_lr)*wd with decouple_lr, over
        1-momentum for SGDP.
    l2: coefficient of `g += l2*p`.
    metric_decay: q of AdamProxL2's `p = (p - s*u)/(1 + q/D)`: lr*wd, or (lr/initial_lr)*wd with decouple_lr.
    grad_scale: every gradient is multiplied by it: -1 to maximize, else 1.
    live: None unless the device counts the steps; lr, betas, momentum and the decays then come from there.
    """

    lr: float
    grad_scale: float = 1.0
    beta1: float = 0.0
    beta2: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    eps: float = 0.0
    l2: float = 0.0
    decay: float = 0.0
    proximal: bool = False
    metric_decay: float = 0.0
    delta: float = 0.0
    wd_ratio: float = 1.0
    project_momentum: bool = False
    speculate: bool = True
    live: Live | None = None


_DECAYS = ("decoupled", "proximal")


def hyper_of(rule: Rule, group: dict[str, Any], index: int, counts_on_device: bool = False) -> Hyper:
    """Checks the param group `group`, number `index`, and returns its `Hyper`.

    counts_on_device: whether the device counts the steps though the group is not capturable.

    Raises ValueError or TypeError naming the group, the argument, what it got and what it takes.
    """
    number = _Numbers(group, index)
    lr = number("lr", low=0.0)
    wd = number("weight_decay", low=0.0)
    common: dict[str, Any] = {"lr": lr, "grad_scale": -1.0 if group["maximize"] else 1.0}
    decay_lr = _decay_lr(group, number, lr)

    if rule.family == "adam":
        common["beta1"], common["beta2"] = number.betas()
        common["nesterov"] = bool(group.get("nesterov", False))
    else:
        common["momentum"] = number("momentum", low=0.0)
        common["dampening"] = number("dampening")
        common["nesterov"] = bool(group["nesterov"])
    if "eps" in group:
        common["eps"] = number("eps", low=0.0)
    if rule.lazy_buffer and common["nesterov"] and (common["momentum"] == 0 or common["dampening"] != 0):
        raise ValueError(
            f"param group {index}: nesterov takes a momentum above 0 and a dampening of 0, got "
            f"momentum={common['momentum']}, dampening={common['dampening']}"
        )
    if group.get("amsgrad"):
        raise ValueError(f"param group {index}: amsgrad is not implemented; use amsgrad=False")

    decay = rule.decay if rule.decay != "group" else group["decay"]
    if rule.decay == "group" and decay not in _DECAYS:
        raise ValueError(f"param group {index}: decay must be 'decoupled' or 'proximal', got {decay!r}")
    if decay == "l2":
        common["l2"] = wd
    elif decay == "proximal_l2":
        common["metric_decay"] = decay_lr * wd
    else:
        common["decay"] = decay_lr * wd
        common["proximal"] = decay == "proximal"

    if rule.projected:
        common["delta"] = number("delta", low=0.0)
        common["wd_ratio"] = number("wd_ratio", low=0.0)
        common["project_momentum"] = bool(group.get("project_momentum", False))
        common["speculate"] = bool(group["speculate"])
        if rule.family == "sgd" and wd:
            common["decay"] /= _one_minus_momentum(common["momentum"], index)
    if group["capturable"] or counts_on_device:
        common["live"] = _live_of(rule, group, decay, number)
    return Hyper(**common)


def _live_of(rule: Rule, group: dict[str, Any], decay: str, number: _Numbers) -> Live:
    """The group's own values, tensors on the device unread."""
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    given = {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "momentum": group.get("momentum", 0.0),
        "initial_lr": group["initial_lr"] if group["decouple_lr"] else 0.0,
    }
    values: dict[str, Any] = {name: value if number.is_live(value) else float(value) for name, value in given.items()}
    return Live(
        **values,
        decay={"l2": "l2", "proximal_l2": "metric"}.get(decay, "direct"),
        decouple_lr=bool(group["decouple_lr"]),
        over_one_minus_momentum=rule.projected and rule.family == "sgd",
        capturable=bool(group["capturable"]),
        identities=tuple(id(value) if number.is_live(value) else value for value in values.values()),
    )


class _Numbers:
    """Reads finite numbers out of a param group; a 0-dim tensor counts as a number."""

    # What the others take a hyper-parameter for that only the device can read: within every bound.
    UNREAD = 0.5
    LIVE = ("lr", "weight_decay", "betas[0]", "betas[1]", "momentum", "initial_lr")

    def __init__(self, group: Mapping[str, Any], index: int):
        self.group, self.index = group, index
        self.device = group["params"][0].device if group["capturable"] and group["params"] else None

    def is_live(self, value: Any) -> bool:
        """Whether the device reads it at every step: a tensor beside the parameters of a capturable group."""
        return isinstance(value, Tensor) and value.device == self.device and value.numel() == 1

    def __call__(self, name: str, low: float = -math.inf) -> float:
        return self._check(name, self.group[name], low)

    def betas(self) -> tuple[float, float]:
        betas = self.group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"param group {self.index}: betas must be two numbers, got {betas!r}")
        return (
            self._check("betas[0]", betas[0], 0.0, below=1.0),
            self._check("betas[1]", betas[1], 0.0, below=1.0),
        )

    def _check(self, name: str, value: Any, low: float, below: float = math.inf) -> float:
        if isinstance(value, bool | str) or not hasattr(value, "__float__"):
            raise TypeError(f"param group {self.index}: {name} must be a number, got {value!r}")
        if getattr(value, "numel", lambda: 1)() != 1:
            raise ValueError(
                f"param group {self.index}: {name} must hold one number, got a tensor of shape {tuple(value.shape)}"
            )
        if self.is_live(value) and name in self.LIVE:
            return self.UNREAD
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"param group {self.index}: {name} must be a real number, got {value!r}") from error
        if not low <= number < below:
            allowed = "a finite number" if low == -math.inf else f"at least {low:g}"
            allowed += "" if low == -math.inf else " and finite" if below == math.inf else f" and below {below:g}"
            raise ValueError(f"param group {self.index}: {name} must be {allowed}, got {number}")
        if math.isinf(number):
            raise ValueError(f"param group {self.index}: {name} must be a finite number, got {number}")
        return number


def _decay_lr(group: dict[str, Any], number: _Numbers, lr: float) -> float:
    """What the decay is multiplied by: lr in torch's convention, lr/initial_lr in the paper's (decouple_lr).

    initial_lr, the lr that the group had when it was first seen, is kept in the group, and so in checkpoints.
    """
    if not group["decouple_lr"]:
        return lr
    own = group["lr"]
    group.setdefault("initial_lr", own.clone() if number.is_live(own) else lr)
    initial_lr = number("initial_lr", low=0.0)
    if initial_lr == 0:
        raise ValueError(
            f"param group {number.index}: decouple_lr divides lr by initial_lr, which is 0; start from an lr above 0"
        )
    return lr / initial_lr


def _one_minus_momentum(momentum: float, index: int) -> float:
    if momentum >= 1:
        raise ValueError(
            f"param group {index}: SGDP divides the weight decay by 1 - momentum, got momentum={momentum}; use a "
            "momentum below 1 or weight_decay=0"
        )
    return 1 - momentum


def has_buffer(rule: Rule, h: Hyper) -> bool:
    """Whether a step of this rule reads and writes moments: torch.optim.SGD keeps no buffer while momentum is 0."""
    return not (rule.lazy_buffer and h.momentum == 0)
