"""Clipping by the norm of all gradients: its coefficient is multiplied in by the next step, and no gradient is written."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import Group, each_parameter
from .torch_compat import is_flat_parameter, is_fsdp, version_of
from .values import holds_truth


class Clip:
    """The coefficient that `clip_grad_norm_` has left for the next step, and the gradients that it belongs to."""

    def __init__(self, coefficient: Tensor, groups: Sequence[Group]):
        self.coefficient = coefficient
        # By identity: hashing a tensor takes as long as all the rest.
        self.marks = {id(p): (p, weakref.ref(p.grad), version_of(p.grad)) for p in _with_gradients(groups)}

    def coefficient_for(self, groups: Sequence[Group], writes: int = 0, may_be_new: bool = False) -> Tensor | None:
        """The coefficient if all gradients are those that were clipped.

        writes: how often a gradient scaler may have written to each without changing it.
        may_be_new: return None if all of them are others.

        Raises RuntimeError for any other change: the result of torch's clipping cannot be computed from the gradients as
        they are then.
        """
        params = list(_with_gradients(groups))
        marks = [self.marks.get(id(p), _NO_MARK) for p in params]
        same = [gradient() is p.grad for p, (_, gradient, _) in zip(params, marks, strict=True)]
        if may_be_new and not any(same):
            return None
        if not all(same):
            raise RuntimeError(self._complaint(groups, params[same.index(False)], "was replaced"))
        for p, (_, _, version) in zip(params, marks, strict=True):
            if not version <= version_of(p.grad) <= version + writes:
                raise RuntimeError(self._complaint(groups, p, "was written to"))
        return self.coefficient

    def _complaint(self, groups: Sequence[Group], p: Tensor, happened: str) -> str:
        return (
            f"{_name_of(p, groups)}: its gradient {happened} after clip_grad_norm_, whose coefficient is multiplied in by the coming step; "
            "unscale, accumulate and change gradients before clipping, or forget the clipping with this optimizer's "
            "zero_grad()"
        )


_NO_MARK = (None, lambda: None, 0)


def _name_of(p: Tensor, groups: Sequence[Group]) -> str:
    return next(name for name, q in each_parameter(groups) if q is p)


def _with_gradients(groups: Sequence[Group]) -> Iterator[Any]:
    return (p for group in groups for p in group["params"] if p.grad is not None)


def check_whole(groups: Sequence[Group]) -> None:
    """Raises if FSDP has sharded a parameter: the norm would be that of this process's part of the gradient."""
    for p in (p for group in groups for p in group["params"]):
        if is_fsdp(p) or is_flat_parameter(p):
            raise ValueError(
                f"{_name_of(p, groups)}: is sharded by FSDP, and so is its gradient, whose norm takes all processes; use clip_grad_norm_ of "
                "the FSDP module, before the step"
            )


def total_norm_of(square_sums: list[Tensor], clip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sqrt of the sum of `square_sums` (float64, each on its device), times the coefficient of an earlier clipping."""
    device = square_sums[0].device
    norm = torch.stack([x.to(device) for x in square_sums]).sum().sqrt()
    if clip is not None:
        norm = norm * clip.to(device)
    return norm.to(dtype)


@torch.no_grad()
def clip_gradients(
    square_sums: list[Tensor],
    groups: Sequence[Group],
    max_norm: float,
    earlier: Tensor | None,
    error_if_nonfinite: bool,
) -> tuple[Tensor, Clip]:
    """The norm of the gradients of all groups, and the clipping to `max_norm`.

    square_sums: of the backends' gradients, float64, on their devices. earlier: the coefficient of an earlier clipping.
    """
    parameters = [p for group in groups for p in group["params"]]
    dtype = torch.float64 if any([p.dtype == torch.float64 for p in parameters]) else torch.float32
    square_sums = square_sums or [torch.zeros((), dtype=torch.float64, device="cpu")]
    total_norm = total_norm_of(square_sums, earlier, dtype)
    if error_if_nonfinite and not bool(total_norm.isfinite()):
        raise RuntimeError(
            f"the norm of all gradients is {float(total_norm)}, so they cannot be clipped to {max_norm:g}; skip this step, or "
            "use error_if_nonfinite=False to clip by it all the same"
        )
    return total_norm, Clip(clip_coefficient(max_norm, total_norm, earlier), groups)


def clip_coefficient(max_norm: float, total_norm: Tensor, earlier: Tensor | None) -> Tensor:
    """min(1, max_norm/(total_norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it, times an earlier one."""
    coefficient = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
    return coefficient if earlier is None else coefficient * earlier.to(coefficient.device)


def checked_max_norm(max_norm: Any) -> float:
    """Raises TypeError or ValueError unless `max_norm` is a number that is at least 0."""
    if isinstance(max_norm, bool | str) or holds_truth(max_norm):
        raise TypeError(f"max_norm must be a number, got {max_norm!r}")
    try:
        number = float(max_norm)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"max_norm must be one real number, got {max_norm!r}") from error
    if not number >= 0:
        raise ValueError(f"max_norm must be at least 0, got {number}")
    return number
