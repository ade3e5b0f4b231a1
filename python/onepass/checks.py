"""Every check of the tensors of a step, in a fixed order, all of it before the first write.

A message names what was wrong, what was given and what to do. Backends compare every tensor with what was bound at every step;
only when one differs are these checks run, which accept or refuse it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .blocks import SCALE, scale_shape
from .dtypes import PARAM_DTYPES
from .masters import MASTER
from .precision import precision_of
from .sharding import check_mesh, check_placements, is_placed_as
from .spec import OptimizerSpec
from .torch_compat import (
    FakeTensor,
    base_of,
    is_dtensor,
    is_flat_parameter,
    is_fsdp,
    is_traceable_wrapper_subclass,
    local_of,
)

Group = dict[str, Any]


def each_parameter(groups: Sequence[Group], first: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yields every parameter with the words that name it in a message. `first` is the number of the first group."""
    for g, group in enumerate(groups, first):
        params, names = group["params"], group.get("param_names") or ()
        named = len(names) == len(params)  # not so where a tool keeps names under that key for itself
        for i, p in enumerate(params):
            name = f" ({names[i]!r})" if named else ""
            yield f"parameter {i} of group {g}{name}, shape {tuple(p.shape)}", p


def _owners(groups: Sequence[Group]) -> list[Group]:
    """The group of every parameter."""
    return [group for group in groups for _ in group["params"]]


def name_of(p: Tensor, groups: Sequence[Group]) -> str:
    """The words that name a parameter of these groups in a message."""
    return next(name for name, q in each_parameter(groups) if q is p)


def check_parameters(spec: OptimizerSpec, groups: Sequence[Group], first: int = 0) -> None:
    """Raises if a parameter cannot be stepped at all; the spec only matters for the advice.

    first: the number of the first of these groups.
    """
    seen: set[int] = set()
    for (name, p), group in zip(each_parameter(groups, first), _owners(groups), strict=True):
        if id(p) in seen:
            raise ValueError(f"{name}: was given twice, and two threads would write to it at once; pass it once")
        seen.add(id(p))
        if is_traceable_wrapper_subclass(p) and not is_dtensor(p):
            raise TypeError(
                f"{name}: is a {type(p).__name__}, which wraps other tensors; pass plain tensors, or torch.distributed.tensor.DTensor"
            )
        if p.layout != torch.strided:
            raise TypeError(f"{name}: must be dense, got layout {p.layout}; use p.to_dense()")
        if p.dtype not in PARAM_DTYPES:
            raise TypeError(f"{name}: must be float16, bfloat16, float32 or float64, got {p.dtype}")
        _check_precision(name, p, group)
        if p.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(
                f"{name}: was made in inference mode, outside of which torch refuses to write to it; use p.clone()"
            )
        if local_of(p).is_neg():
            raise ValueError(f"{name}: is a view that torch negates when it is read; use p.resolve_neg()")
        if is_dtensor(p):
            precision = precision_of(group)
            check_placements(name, p, precision.draws(spec, p), precision.moment_dtype(p) == torch.uint8)
        if overlaps(local_of(p)):
            raise ValueError(
                f"{name}: its elements share memory (strides {p.stride()}), so a write to one would change another; "
                "use p.clone()"
            )
    for g, group in enumerate(groups, first):
        devices = {p.device for p in group["params"]}
        if len(devices) > 1:
            raise ValueError(
                f"param group {g}: its parameters must lie on one device, got {sorted(map(str, devices))}; make one "
                "param group for each device"
            )


def _check_precision(name: str, p: Tensor, group: Group) -> None:
    precision = precision_of(group)
    if p.dtype == torch.float64 and group.get("state_dtype") is not None:
        raise ValueError(
            f"{name}: state_dtype={group['state_dtype']!r} is not for torch.float64, whose moments are float64; put the parameter "
            "into a group with state_dtype=None"
        )
    if p.dtype == torch.float16:
        for asked, what, instead in (
            (precision.master_weights, "master_weights=True has no exact weights", "master_weights=False"),
            (
                precision.moment_bits < 32,
                f"state_dtype={group.get('state_dtype')!r} has no moments",
                "state_dtype=None",
            ),
            (precision.stochastic_rounding, "stochastic_rounding=True has no rounding", "stochastic_rounding=False"),
        ):
            if asked:
                raise TypeError(
                    f"{name}: {what} for torch.float16; convert the parameter to torch.bfloat16 or torch.float32, or put it "
                    f"into a group with {instead}"
                )


def check_rows(spec: OptimizerSpec, groups: Sequence[Group], had_matrices: bool) -> None:
    """Raises if the rule projects and a parameter is known to be a flat piece of a matrix: it would be taken for a vector,
    and not be projected.

    had_matrices: whether matrices were added to the groups. DeepSpeed's ZeRO 1 and 2 and Megatron put flat copies in the place of
    all parameters, which nothing else tells from vectors.
    """
    if not spec.projected:
        return
    named = list(each_parameter(groups))
    # Where FSDP does not shard, it gives matrices back as matrices, and its vectors are vectors. All groups are looked
    # at together, since one may be of vectors alone.
    sharded = not any(is_fsdp(p) and p.dim() > 1 for _, p in named)
    lost = had_matrices and not any(p.dim() > 1 for _, p in named)
    for name, p in named:
        matrix = _cut_from(p, sharded) if p.dim() == 1 else None
        if matrix is None and lost and not isinstance(p, torch.nn.Parameter):
            matrix = (
                "a plain vector, and the matrices that the optimizer was made for are gone, as where DeepSpeed's ZeRO or Megatron "
                "puts flat shards in their place (if it is meant to be a vector, make it a torch.nn.Parameter)"
            )
        if matrix is not None:
            raise ValueError(
                f"{name}: is {matrix}, and the projection needs its rows; use an optimizer without projection, or "
                "fully_shard, DistributedDataParallel or ZeroRedundancyOptimizer, which leave rows as they are"
            )


def _cut_from(p: Tensor, sharded: bool) -> str | None:
    """Names the flat shard that a one-dimensional parameter is, if it can be recognised; None for a vector."""
    if (is_fsdp(p) and sharded) or is_flat_parameter(p):
        return "a flat shard made by FSDP"
    if isinstance(getattr(p, "ds_id", None), str):  # an unsharded parameter has a number there
        return "a flat shard made by DeepSpeed's ZeRO 3"
    dim = getattr(p, "partition_dim", None)  # of the matrix, copied to its shard
    if isinstance(dim, int) and dim > 0:
        return f"a flat shard made by Megatron (of a matrix, since its partition_dim is {dim})"
    base = base_of(p)
    # A view as long as a row or a column is one: a vector of a stack of them.
    if base is not None and base.dim() > 1 and p.numel() not in base.shape:
        return (
            f"a flat piece of a tensor of shape {tuple(base.shape)} (if it is meant to be a vector, make it a "
            "torch.nn.Parameter)"
        )
    return None


def check_memory(groups: Sequence[Group], state: Any) -> None:
    """Raises if a tensor of a step has no memory. It may be a parameter of an optimizer that is never stepped."""
    for name, p in each_parameter(groups):
        own = state.get(p)
        entries = own.items() if isinstance(own, dict) else ()
        for what, t in (("", p), (" its gradient", p.grad), *((f" its state {key!r}", x) for key, x in entries)):
            if isinstance(t, FakeTensor):
                raise TypeError(
                    f"{name}:{what} is a FakeTensor, which has no memory to step; make it, and step, outside of FakeTensorMode"
                )


def check_gradients(groups: Sequence[Group]) -> None:
    """Raises if a gradient does not fit its parameter."""
    for name, p in each_parameter(groups):
        g = p.grad
        if g is None:
            continue
        if is_dtensor(p) or is_dtensor(g):
            check_mesh(name, p, g)
        elif is_traceable_wrapper_subclass(g):
            raise TypeError(f"{name}: its gradient is a {type(g).__name__}, which wraps other tensors; pass plain ones")
        if g.layout != torch.strided:
            raise RuntimeError(
                f"{name}: its gradient must be dense, got layout {g.layout}; use p.grad.to_dense(), or sparse=False in "
                "the embedding"
            )
        if g.dtype != p.dtype and not (p.dtype.itemsize == 2 and g.dtype == torch.float32):
            other = ", or torch.float32" if p.dtype.itemsize == 2 else ""
            raise TypeError(f"{name}: its gradient must be {p.dtype} as the parameter is{other}, got {g.dtype}")
        if g.device != p.device:
            raise RuntimeError(f"{name}: its gradient must be on {p.device} as the parameter is, got {g.device}")
        if g.shape != p.shape:
            raise ValueError(f"{name}: its gradient must have the parameter's shape, got {tuple(g.shape)}")
        if overlaps(local_of(g)):
            raise ValueError(
                f"{name}: its gradient is expanded, elements share memory (strides {g.stride()}); use p.grad.clone()"
            )


def check_state(spec: OptimizerSpec, groups: Sequence[Group], state: Any, counts_on_device: bool) -> None:
    """Raises if a state tensor, loaded or replaced by hand, does not fit its parameter."""
    for (name, p), group in zip(each_parameter(groups), _owners(groups), strict=True):
        own = state.get(p, {})
        if not isinstance(own, dict):
            raise TypeError(f"{name}: its state must be a dict, got {own!r}; delete it from the optimizer's state")
        precision = precision_of(group)
        tensors = dict.fromkeys(spec.moments, precision.moment_dtype(p))
        if precision.has_master(p.dtype):
            tensors[MASTER] = torch.int16
        for key, dtype in tensors.items():
            if own.get(key) is not None:
                check_state_tensor(name, p, key, own[key], dtype)
                if dtype == torch.uint8:
                    _check_scales(name, p, key + SCALE, own.get(key + SCALE))
        numbers = []
        if precision.is_counted(spec, p.dtype):
            numbers.append(("step", torch.float32, step_device(p, group, counts_on_device)))
        if spec.projected and p.dim() > 1:
            numbers.append(("gate_counter", torch.uint8, p.device))
        for key, dtype, device in numbers:
            value = own.get(key)
            if value is not None and not (
                isinstance(value, Tensor) and value.dtype == dtype and value.numel() == 1 and value.device == device
            ):
                raise ValueError(
                    f"{name}: its state {key!r} must be a tensor of one {dtype} number on {device}, got {value!r}; "
                    "load it with load_state_dict"
                )


def check_state_tensor(name: str, p: Tensor, key: str, moment: Any, dtype: torch.dtype) -> None:
    """Raises if a tensor of the state does not fit its parameter."""
    fits = (
        isinstance(moment, Tensor) and moment.shape == p.shape and moment.device == p.device and is_placed_as(moment, p)
    )
    if not fits or moment.dtype != dtype or moment.layout != torch.strided or overlaps(local_of(moment)):
        raise ValueError(
            f"{name}: its state {key!r} must be a dense {dtype} tensor of the parameter's shape on {p.device}{_placed_as(p)}, "
            f"got {_described(moment)}; {_state_advice(p, moment)}"
        )


def _check_scales(name: str, p: Tensor, key: str, scales: Any) -> None:
    shape = scale_shape(p.shape)
    fits = (
        isinstance(scales, Tensor)
        and scales.shape == shape
        and scales.device == p.device
        and is_dtensor(scales) == is_dtensor(p)
    )
    if not fits or scales.dtype != torch.uint8 or not local_of(scales).is_contiguous():
        raise ValueError(
            f"{name}: its state {key!r} must be a contiguous torch.uint8 tensor of shape {shape} on {p.device}, got "
            f"{_described(scales)}; load it with load_state_dict, with the moment that it belongs to"
        )


def _described(x: Any) -> str:
    if not isinstance(x, Tensor):
        return repr(x)
    return f"{x.dtype}, shape {tuple(x.shape)}, on {x.device}" + (
        f", placements {x.placements}" if is_dtensor(x) else ""
    )


def _placed_as(p: Tensor) -> str:
    return f" with placements {p.placements}" if is_dtensor(p) else ""


def _state_advice(p: Tensor, moment: Any) -> str:
    if isinstance(moment, Tensor) and moment.shape == p.shape:
        return (
            "if the parameter was converted or moved after a step, as by model.double() or model.to(device), "
            "or state_dtype was changed, opt.load_state_dict(opt.state_dict()) does the same to the state"
        )
    return "load it with load_state_dict"


def step_device(p: Tensor, group: Group, counts_on_device: bool) -> torch.device:
    """The device of the step count of `p`: that of `p` only if the device counts the steps, since the host reads it otherwise."""
    return p.device if group["capturable"] or counts_on_device else torch.device("cpu")


def overlaps(t: Tensor) -> bool:
    """Whether two elements of `t` may share memory, decided by its strides."""
    if t.numel() < 2:
        return False
    reach = 1
    for stride, size in sorted((st, si) for st, si in zip(t.stride(), t.shape, strict=True) if si > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False
