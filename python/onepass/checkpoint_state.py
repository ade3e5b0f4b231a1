"""What a state dict holds: checked before anything is changed, and loaded with the dtypes that the arithmetic runs in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .blocks import NEAREST, SCALE, decoded, encoded, has_scales, scale_shape
from .checkpoint_groups import check_arguments, merged
from .checks import Group, step_device
from .hyperparams import hyper_of
from .masters import MASTER, split
from .precision import precision_of
from .sharding import is_placed_as, part_of, whole_of
from .spec import OptimizerSpec
from .state import scales_like
from .torch_compat import is_dtensor, is_traceable_wrapper_subclass, like_local, local_of, tree_map_only

State = defaultdict[Any, Any]

# State keys of optimizers. A state without any of them has entries of a hook only, and says nothing of steps.
OF_OPTIMIZERS = frozenset(
    (
        *("step", "exp_avg", "exp_avg_sq", "momentum", "momentum_buffer"),
        *("square_avg", "sum", "acc_delta", "exp_inf", "prev", "exp_avg_var", "exp_avg_diff", "grad_sum_sq"),
        *("state1", "state2"),
    )
)

# Those of optimizers that have ours too: torch's and timm's NAdam, timm's LaProp and MARS.
OF_OTHERS = ("mu_product", "m_schedule", "exp_avg_lr_1", "last_grad")


class Loading(NamedTuple):
    """A state dict as it is to be loaded: its groups; state by parameter, in tensors of this optimizer's own; and what is to be
    written to parameters whose exact weights it has."""

    groups: list[Group]
    state: State
    parameters: list[tuple[Tensor, Tensor]]


def prepare(
    spec: OptimizerSpec,
    name: str,
    groups: list[Group],
    defaults: dict[str, Any],
    counts_on_device: bool,
    state_dict: dict[str, Any],
) -> Loading | None:
    """Checks a state dict for the class `name`, whose param groups are `groups`, and copies its state.

    None if its groups do not have the sizes of `groups`, which torch's base class then refuses.
    Raises ValueError or TypeError naming the group or parameter. Nothing has been changed, here and afterwards.
    """
    saved = state_dict["param_groups"]
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        return None
    check_arguments(spec, name, saved, groups)
    loaded = [merged(theirs, mine, defaults) for theirs, mine in zip(saved, groups, strict=True)]
    for index, (group, mine) in enumerate(zip(loaded, groups, strict=True)):
        _check_values(spec, {**group, "params": mine["params"]}, index, counts_on_device)
    owners = dict(_owners(saved, groups))
    for number, own in state_dict["state"].items():
        if number in owners:
            _check_state(spec, owners[number], own)
    return Loading(loaded, *_copied(spec, owners, counts_on_device, state_dict["state"]))


class _Owner(NamedTuple):
    parameter: Tensor
    group: Group
    words: str


def _owners(saved: list[Group], groups: list[Group]) -> Iterator[tuple[Any, _Owner]]:
    """Every parameter by the number that the state dict gives it, with the words that name it in a message."""
    numbers = chain.from_iterable(group["params"] for group in saved)
    for group in groups:
        names = group.get("param_names") or []
        if len(names) != len(group["params"]):  # a tool's own, or of before a parameter was appended
            names = [None] * len(group["params"])
        for p, name in zip(group["params"], names, strict=True):
            number = next(numbers)
            yield number, _Owner(p, group, f"parameter {number}" + ("" if name is None else f" ({name!r})"))


# ---------------------------------------------------------------- checks


def _check_values(spec: OptimizerSpec, group: Group, index: int, counts_on_device: bool) -> None:
    """Raises if a group could not be stepped. It may be completed, so this is for a copy."""
    try:
        hyper_of(spec, group, index, counts_on_device)
    except (TypeError, ValueError) as error:
        raise type(error)(f"the state dict's {error}") from error


def _check_state(spec: OptimizerSpec, owner: _Owner, own: Any) -> None:
    """Raises if `own` is not the state that an optimizer with this rule has of a parameter."""
    if not isinstance(own, dict):
        raise TypeError(f"the state dict's state of {owner.words} must be a dict, got {own!r}")
    required = [*spec.moments, *(["step"] if spec.counted else [])]
    held = [key for key in required if own.get(key) is not None]
    # torch.optim.SGD has a momentum_buffer of None before there is one.
    present = [key for key in OF_OPTIMIZERS & own.keys() if own[key] is not None or not spec.lazy_buffer]
    if len(held) < len(required) and any(key != "step" or spec.counted for key in present):
        missing = [key for key in required if key not in held]
        raise ValueError(
            f"the state dict's state of {owner.words} must have {', '.join(map(repr, required))}, got "
            f"{', '.join(map(repr, own))}, without {', '.join(map(repr, missing))}; load one of this optimizer, of "
            "torch.optim's or of adamp's, or put there what is missing"
        )
    for key in OF_OTHERS:
        if own.get(key) is not None:
            raise ValueError(f"the state dict's state of {owner.words} has {key!r}, so it is of another optimizer")
    for key in spec.moments:
        if own.get(key) is not None:
            _check_moment(owner, own, key)
    if own.get(MASTER) is not None and precision_of(owner.group).has_master(owner.parameter.dtype):
        _check_master(owner, own[MASTER])
    if spec.counted and own.get("step") is not None:
        _check_number(owner, "step", own["step"], "a finite number, at least 0", lambda x: 0 <= x < math.inf)
    if _is_gated(spec, owner.parameter) and own.get("gate_counter") is not None:
        _check_number(owner, "gate_counter", own["gate_counter"], "0, 1, 2 or 3", lambda x: x in (0, 1, 2, 3))


def _check_moment(owner: _Owner, own: dict[str, Any], key: str) -> None:
    moment = own[key]
    what = f"the state dict's {key!r} of {owner.words}"
    if has_scales(moment):
        _check_tensor(what, owner.parameter, moment)
        _check_scales(what, owner.parameter, key, own.get(key + SCALE))
        return
    if isinstance(moment, Tensor) and not moment.is_floating_point():
        raise ValueError(f"{what} must be of a floating-point dtype, got {moment.dtype}")
    _check_tensor(what, owner.parameter, moment)
    part = local_of(moment)
    if key == "exp_avg_sq" and not moment.is_meta and bool((part < 0).any()):
        raise ValueError(f"{what} must have no element below 0, as it averages squares, got {float(part.min())}")


def _check_scales(what: str, p: Tensor, key: str, scales: Any) -> None:
    shape = scale_shape(p.shape)
    if not has_scales(scales) or tuple(scales.shape) != shape or (scales.is_meta and not p.is_meta):
        given = f"{scales.dtype} of shape {tuple(scales.shape)}" if isinstance(scales, Tensor) else repr(scales)
        raise ValueError(
            f"{what} is torch.uint8, codes of 8 bits, so {key + SCALE!r} must be there, torch.uint8 of shape {shape}, got {given}; "
            "codes of other libraries are to be made floating-point numbers by these"
        )


def _check_master(owner: _Owner, master: Any) -> None:
    what, p = f"the state dict's {MASTER!r} of {owner.words}", owner.parameter
    _check_tensor(what, p, master)
    if master.dtype not in (torch.int16, torch.float32):
        raise ValueError(
            f"{what} must be torch.int16, the remainder, or torch.float32, the weight, got {master.dtype}: has a loader cast it? "
            "Load it in its own dtype, or delete it to go on with the parameter as it is"
        )
    if master.dtype == torch.float32 and not p.is_meta and _was_cast(part_of(master, p).to(p.device), local_of(p)):
        raise ValueError(
            f"{what} is torch.float32 with whole numbers that are not near the parameter, so it is a remainder that was cast "
            "(convert it to torch.int16), or of other weights (load those of the model first)"
        )


def _was_cast(master: Tensor, p: Tensor) -> bool:
    """Whether a float32 tensor looks like a remainder, whole numbers of 16 bits, rather than like a weight."""
    whole = bool(((master == master.round()) & (master.abs() <= 1 << 15)).all())
    return whole and bool((master - p.detach().float()).abs().gt(p.detach().float().abs() / 64).any())


def _check_tensor(what: str, p: Tensor, moment: Any) -> None:
    if not isinstance(moment, Tensor):
        raise ValueError(f"{what} must be a tensor, got {moment!r}")
    if moment.layout != torch.strided or (is_traceable_wrapper_subclass(moment) and not is_dtensor(moment)):
        raise ValueError(
            f"{what} must be a plain dense tensor, got a {type(moment).__name__} of layout {moment.layout}"
        )
    if moment.is_meta and not p.is_meta:
        raise ValueError(f"{what} is on the meta device, so it has no values; save the state dict of a real optimizer")
    if moment.shape != p.shape:
        raise ValueError(
            f"{what} has shape {tuple(moment.shape)}, but the parameter has shape {tuple(p.shape)}: is it of another "
            "model? Load the state dict of an optimizer of the same parameters in the same order"
        )


def _check_number(owner: _Owner, key: str, value: Any, allowed: str, accepts: Callable[[float], bool]) -> None:
    what = f"the state dict's {key!r} of {owner.words}"
    if isinstance(value, Tensor) and value.is_meta and owner.parameter.is_meta:
        return
    if isinstance(value, Tensor):
        real = value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool and not value.is_meta
    else:
        real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real:
        raise ValueError(f"{what} must be one number, got {value!r}")
    if not accepts(float(value)):
        raise ValueError(f"{what} must be {allowed}, got {float(value)}")


def _is_gated(spec: OptimizerSpec, p: Tensor) -> bool:
    return spec.projected and p.dim() > 1


# ---------------------------------------------------------------- copies


@torch.no_grad()
def _copied(
    spec: OptimizerSpec, owners: dict[Any, _Owner], counts_on_device: bool, state: dict[Any, Any]
) -> tuple[State, list[tuple[Tensor, Tensor]]]:
    """The state by parameter instead of number, in new tensors, and what is to be written to parameters; entries of no
    parameter are taken over, as torch does."""
    copied: State = defaultdict(dict)
    parameters: list[tuple[Tensor, Tensor]] = []
    for number, own in state.items():
        if number not in owners:
            copied[number] = own
            continue
        p, group, _ = owners[number]
        mine, precision = copied[p], precision_of(group)
        scales = [key + SCALE for key in spec.moments if has_scales(own.get(key))]
        for key, value in own.items():
            if value is not None and key == "step" and precision.is_counted(spec, p.dtype):
                mine[key] = _number(value, torch.float32, step_device(p, group, counts_on_device))
            elif value is not None and key == "gate_counter" and _is_gated(spec, p):
                mine[key] = _number(value, torch.uint8, p.device)
            elif value is not None and key in spec.moments:
                mine.update(_moment(p, key, value, own.get(key + SCALE), precision.moment_dtype(p)))
            elif key in scales:
                pass  # copied with its moment
            elif key == MASTER:
                if value is not None and precision.has_master(p.dtype):
                    value = part_of(value.detach(), p)
                    if value.dtype == torch.float32:
                        nearest, value = split(value.to(p.device))
                        parameters.append((p, nearest))
                    mine[key] = _like(p, torch.int16, value)
            else:
                mine[key] = _beside(p, value)
    return copied, parameters


def _like(p: Tensor, dtype: torch.dtype, part: Tensor) -> Tensor:
    """A tensor of the layout and placements of a parameter, of which this rank holds `part`."""
    return like_local(torch.empty_like(local_of(p), dtype=dtype, requires_grad=False).copy_(part), p)


def _moment(p: Tensor, key: str, moment: Tensor, scales: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """A moment in new tensors, of the dtype that `p` has moments in. torch's base class would cast it to that of `p`."""
    signed = key != "exp_avg_sq"
    if has_scales(moment) and dtype != torch.uint8:
        if is_dtensor(moment) and is_placed_as(moment, p):
            part = decoded(local_of(moment), local_of(scales), signed)
        else:  # blocks may lie across the parts
            part = part_of(decoded(whole_of(moment), whole_of(scales), signed), p)
        return {key: _like(p, dtype, part)}
    part = part_of(moment.detach(), p)
    if dtype != torch.uint8:
        return {key: _like(p, dtype, part)}
    own = scales_like(p)
    if has_scales(moment):
        scales = part_of(scales, own)
    else:
        x = part.to(p.device, torch.float32)
        part, scales = encoded(x, None if signed else torch.full_like(x, NEAREST, dtype=torch.int64))
    local_of(own).copy_(scales)
    return {key: _like(p, dtype, part), key + SCALE: own}


def _number(value: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = whole_of(value) if isinstance(value, Tensor) else value
    has_value = not (isinstance(value, Tensor) and value.is_meta)
    return torch.tensor(float(value) if has_value else 0, dtype=dtype, device=device)


def _beside(p: Tensor, value: Any) -> Any:
    """`value`, an entry of a hook or the like, with copies of its tensors on the device of `p`."""
    return tree_map_only(Tensor, lambda t: t.detach().to(p.device, copy=True), value)
