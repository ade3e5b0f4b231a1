"""The hyper-parameters of a param group: checked, and in the papers' terms.

A param group holds the values that the user gave. `Hyper` holds the values that the rules use: the decay multiplied by the
learning rate, the sign of `maximize` folded into the gradient's scale. Every backend reads this one record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .precision import BITS, PLAIN, Precision, precision_of
from .spec import OptimizerSpec
from .values import Values
from .verdict import GATES

Decay = Literal["decoupled", "proximal"]
Projection = Literal["auto", "channel", "layer", "none"]
NO_FIXED_GATE = -1
RuleName = Literal["adam", "momentum", "sgd"]


@dataclass(frozen=True)
class DeviceHyper:
    """The hyper-parameters of a group whose steps the device counts, as the group has them: the device computes `Hyper`'s
    fields from them at every step. In a capturable group, a tensor on the parameters' device is read there, so that
    replaying a captured graph uses its current value.

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
    fixed_gate: the position in GATES of the gate that `projection` sets, or NO_FIXED_GATE for "auto".
    precision: how parameters and moments are stored.
    seed: of the random bits of stochastic rounding, below 2^64 (draws.py).
    device_hyper: None unless the device counts the steps; lr, betas, momentum and the decays then come from it.
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
    fixed_gate: int = NO_FIXED_GATE
    precision: Precision = PLAIN
    seed: int = 0
    device_hyper: DeviceHyper | None = None


def hyper_of(spec: OptimizerSpec, group: dict[str, Any], index: int, counts_on_device: bool) -> Hyper:
    """Checks the param group `group`, number `index`, and returns its `Hyper`.

    counts_on_device: whether the device counts the steps though the group is not capturable.

    Raises ValueError or TypeError naming the group, the argument, what it got and what it takes.
    """
    number = Values(group, index)
    lr = number("lr", low=0.0)
    wd = number("weight_decay", low=0.0)
    common: dict[str, Any] = {"lr": lr, "grad_scale": -1.0 if number.flag("maximize") else 1.0}
    common["precision"] = _checked_precision(spec, group, number)
    common["seed"] = number.seed("seed")
    decouple_lr = number.flag("decouple_lr")
    decay_lr = _decay_lr(group, number, lr) if decouple_lr else lr

    if spec.rule == "adam":
        common["beta1"], common["beta2"] = number.betas()
    else:
        common["momentum"] = number("momentum", low=0.0)
        common["dampening"] = number("dampening")
    if spec.rule == "momentum" or spec.projected:
        common["nesterov"] = number.flag("nesterov")
    if spec.rule == "adam" or spec.projected:
        common["eps"] = number("eps", low=0.0)
    if spec.lazy_buffer and common["nesterov"] and (common["momentum"] == 0 or common["dampening"] != 0):
        raise ValueError(
            f"param group {index}: nesterov takes a momentum above 0 and a dampening of 0, got "
            f"momentum={common['momentum']}, dampening={common['dampening']}"
        )

    decay = spec.decay if spec.decay != "group" else group["decay"]
    if spec.decay == "group" and decay not in get_args(Decay):
        raise ValueError(f"param group {index}: decay must be 'decoupled' or 'proximal', got {decay!r}")
    if decay == "l2":
        common["l2"] = wd
    elif decay == "proximal_l2":
        common["metric_decay"] = decay_lr * wd
    else:
        common["decay"] = decay_lr * wd
        common["proximal"] = decay == "proximal"

    if spec.projected:
        common["delta"] = number("delta", low=0.0)
        common["wd_ratio"] = number("wd_ratio", low=0.0)
        common["speculate"] = number.flag("speculate")
        common["fixed_gate"] = _fixed_gate(group.get("projection", "auto"), index)  # absent from old pickles
        if spec.rule == "momentum":
            common["project_momentum"] = number.flag("project_momentum")
            if wd:
                common["decay"] /= _one_minus_momentum(common["momentum"], index)
    if number.capturable or counts_on_device:
        common["device_hyper"] = _device_hyper_of(spec, group, decay, decouple_lr, number)
    return Hyper(**common)


def _checked_precision(spec: OptimizerSpec, group: dict[str, Any], number: Values) -> Precision:
    for name in ("master_weights", "stochastic_rounding"):
        if name in group:  # absent from old pickles
            number.flag(name)
    state_dtype = group.get("state_dtype")
    if state_dtype is not None and not (isinstance(state_dtype, torch.dtype | str) and state_dtype in BITS):
        raise ValueError(
            f"param group {number.index}: state_dtype must be None, torch.float32, torch.bfloat16 or '8bit', got {state_dtype!r}"
        )
    if state_dtype == "8bit" and spec.rule != "adam":
        raise ValueError(
            f"param group {number.index}: state_dtype='8bit' is for the moments of Adam and its kin; the momentum buffer of SGD "
            "and SGDP can be torch.bfloat16"
        )
    precision = precision_of(group)
    if precision.master_weights and precision.stochastic_rounding:
        raise ValueError(
            f"param group {number.index}: stochastic_rounding=True has nothing to round beside master_weights=True, which keeps "
            "the exact weight; use one of them"
        )
    return precision


def _fixed_gate(projection: Any, index: int) -> int:
    if projection not in get_args(Projection):
        raise ValueError(
            f"param group {index}: projection must be 'auto', 'channel', 'layer' or 'none', got {projection!r}"
        )
    return NO_FIXED_GATE if projection == "auto" else GATES.index(projection)


def _device_hyper_of(
    spec: OptimizerSpec, group: dict[str, Any], decay: str, decouple_lr: bool, number: Values
) -> DeviceHyper:
    """The group's own values, tensors on the device unread."""
    beta1, beta2 = group["betas"] if spec.rule == "adam" else (0.0, 0.0)
    given = {
        "lr": group["lr"],
        "weight_decay": group["weight_decay"],
        "beta1": beta1,
        "beta2": beta2,
        "momentum": group["momentum"] if spec.rule == "momentum" else 0.0,
        "initial_lr": group["initial_lr"] if decouple_lr else 0.0,
    }
    values: dict[str, Any] = {
        name: value if number.is_on_device(value) else float(value) for name, value in given.items()
    }
    return DeviceHyper(
        **values,
        decay={"l2": "l2", "proximal_l2": "metric"}.get(decay, "direct"),
        decouple_lr=decouple_lr,
        over_one_minus_momentum=spec.projected and spec.rule == "momentum",
        capturable=number.capturable,
        identities=tuple(id(value) if number.is_on_device(value) else value for value in values.values()),
    )


def _decay_lr(group: dict[str, Any], number: Values, lr: float) -> float:
    """What the decay is multiplied by in the paper's convention (decouple_lr): lr/initial_lr.

    initial_lr, the lr that the group had when it was first seen, is kept in the group, and so in checkpoints.
    """
    own = group["lr"]
    group.setdefault("initial_lr", own.clone() if number.is_on_device(own) else lr)
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


def has_moments(spec: OptimizerSpec, h: Hyper) -> bool:
    """Whether a step reads and writes moments: torch.optim.SGD has no momentum buffer while momentum is 0."""
    return not (spec.lazy_buffer and h.momentum == 0)


def rule_of(spec: OptimizerSpec, h: Hyper) -> RuleName:
    """The rule of a step: the spec's, or "sgd" without a momentum buffer."""
    return spec.rule if has_moments(spec, h) else "sgd"


def predicts(h: Hyper, param: torch.dtype) -> bool:
    """Whether the gate of a projected parameter of this dtype is predicted.

    A fixed gate is predicted rightly. Otherwise the correction recovers p from p', which needs more digits than 16 bits have;
    and it cannot undo the projection of a momentum buffer."""
    if h.fixed_gate != NO_FIXED_GATE:
        return True
    return h.speculate and not (h.project_momentum and not h.nesterov) and h.precision.is_exact(param)
