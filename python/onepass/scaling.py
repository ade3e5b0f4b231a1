"""What the gradients of a step are multiplied by besides their group's sign: a gradient scaler's scale, and clipping.

Neither writes to a gradient: the kernels multiply it in where they read the gradient anyway.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import Group, each_parameter, of_fsdp
from .values import holds_truth


@dataclass(frozen=True)
class Scaling:
    """Tensors of one number, on any device; None where there is nothing to do.

    clip: the coefficient of `clip_grad_norm_`.
    grad_scale: what the loss was multiplied by, and so what the gradients are divided by.
    found_inf: the step is not to be taken unless it is 0.
    """

    clip: Tensor | None = None
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __bool__(self) -> bool:
        return any([x is not None for x in (self.clip, self.grad_scale, self.found_inf)])

    def to(self, device: torch.device) -> Scaling:
        """The same, on `device`."""
        given = (self.clip, self.grad_scale, self.found_inf)
        return Scaling(*[None if x is None else _number(x).to(device, non_blocking=True) for x in given])

    @property
    def factor(self) -> float:
        """What gradients are multiplied by. Waits for the device that the tensors are on. Meta tensors have no values, and
        neither does the norm of their gradients."""
        factor = 1.0 if self.clip is None or self.clip.is_meta else float(self.clip)
        return factor if self.grad_scale is None else factor / float(self.grad_scale)

    @property
    def skips(self) -> bool:
        """Whether the step is not to be taken. Waits for the device that the tensors are on."""
        return self.found_inf is not None and float(self.found_inf) != 0

    @property
    def known_to_skip(self) -> bool:
        """`skips`, as far as it can be known without waiting for a device."""
        return self.found_inf is not None and self.found_inf.device.type == "cpu" and self.skips


NO_SCALING = Scaling()


def _number(x: Tensor) -> Tensor:
    """In a dtype that the kernels read."""
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()


class Clip:
    """The coefficient that `clip_grad_norm_` has left for the coming step, and which gradients it belongs to."""

    def __init__(self, coefficient: Tensor, groups: Sequence[Group]):
        self.coefficient = coefficient
        # By identity: to hash a tensor takes as long as all the rest.
        self.marks = {id(p): (p, weakref.ref(p.grad), _version(p.grad)) for p in _with_gradients(groups)}

    def coefficient_for(self, groups: Sequence[Group], writes: int = 0, may_be_new: bool = False) -> Tensor | None:
        """The coefficient if all gradients are those that were clipped.

        writes: how often a gradient scaler may have written to each without changing it.
        may_be_new: return None if all of them are others.

        Raises RuntimeError for any other change: what torch's clipping would have made of it cannot be had from the
        gradients as they are.
        """
        params = list(_with_gradients(groups))
        marks = [self.marks.get(id(p), _NO_MARK) for p in params]
        same = [gradient() is p.grad for p, (_, gradient, _) in zip(params, marks, strict=True)]
        if may_be_new and not any(same):
            return None
        if not all(same):
            raise RuntimeError(self._complaint(groups, params[same.index(False)], "was replaced"))
        for p, (_, _, version) in zip(params, marks, strict=True):
            if not version <= _version(p.grad) <= version + writes:
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


def _version(g: Tensor) -> int:
    try:
        return g._version
    except RuntimeError:  # what is made in inference mode has none
        return 0


def check_whole(groups: Sequence[Group]) -> None:
    """Raises if a parameter is FSDP's, of whose gradient this process may hold a part: its norm would be that part's."""
    for p in (p for group in groups for p in group["params"]):
        if of_fsdp(p) or type(p).__name__ == "FlatParameter":
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
