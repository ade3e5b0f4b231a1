"""The state of parameters: what a step makes of it, and where its step counts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor

from .blocks import SCALE, has_scales, scale_shape
from .checks import Group, step_device
from .hyperparams import Hyper, has_moments
from .masters import MASTER
from .precision import precision_of
from .spec import OptimizerSpec
from .torch_compat import like_local, local_of


def make_state(
    spec: OptimizerSpec, groups: Sequence[Group], hypers: Sequence[Hyper], state: Any, counts_on_device: bool
) -> dict[Tensor, ref[Tensor]]:
    """Makes the missing state of the parameters that have a gradient; returns those whose lazy buffer is new, with the
    buffer. Any other new state is the same as one that no step has changed yet."""
    first = {}
    for group, h in zip(groups, hypers, strict=True):
        for p in group["params"]:
            if p.grad is not None:
                buffer = make_state_of(spec, p, group, h, state, counts_on_device)
                if buffer is not None:
                    first[p] = buffer
    return first


def make_state_of(
    spec: OptimizerSpec, p: Tensor, group: Group, h: Hyper, state: Any, counts_on_device: bool
) -> ref[Tensor] | None:
    """Makes the missing state of one parameter; returns its lazy buffer if that is new."""
    precision, first = precision_of(group), None
    exact, counted = precision.has_master(p.dtype), precision.is_counted(spec, p.dtype)
    if not exact and p in state:
        state[p].pop(MASTER, None)  # of before its group or its dtype was changed; it would be stale
    if not (has_moments(spec, h) or counted or exact):
        return None
    own = state[p]
    if exact and own.get(MASTER) is None:
        own[MASTER] = zeros_like(p, torch.int16)
    if counted and own.get("step") is None:
        own["step"] = torch.zeros((), dtype=torch.float32, device=step_device(p, group, counts_on_device))
    if spec.projected and p.dim() > 1 and own.get("gate_counter") is None:
        own["gate_counter"] = torch.ones((), dtype=torch.uint8, device=p.device)
    for key in spec.moments if has_moments(spec, h) else ():
        if own.get(key) is None:
            own[key] = zeros_like(p, precision.moment_dtype(p))
            if has_scales(own[key]):
                own[key + SCALE] = scales_like(p)
            if spec.lazy_buffer:
                first = ref(own[key])
    return first


def zeros_like(p: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the layout and the placements of a parameter."""
    return like_local(torch.zeros_like(local_of(p), dtype=dtype, requires_grad=False), p)


def scales_like(p: Tensor) -> Tensor:
    """The scales of a moment of 8 bits of a parameter. A rank has those of its blocks."""
    scales = torch.zeros(scale_shape(local_of(p).shape), dtype=torch.uint8, device=p.device)
    return like_local(scales, p, scale_shape(p.shape))


def move_counts(spec: OptimizerSpec, groups: Sequence[Group], state: Any) -> None:
    """Moves step counts to the devices of their parameters."""
    for group in groups:
        precision = precision_of(group)
        for p in group["params"]:
            own = state.get(p, {})
            if precision.is_counted(spec, p.dtype) and own.get("step") is not None:
                own["step"] = own["step"].to(p.device)
