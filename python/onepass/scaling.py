"""What the gradients of a step are multiplied by besides their group's sign: a gradient scaler's scale, and clipping.

Neither writes to a gradient: the kernels multiply it in where they read the gradient anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


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
        """What gradients are multiplied by. Waits for the device that the tensors are on."""
        factor = 1.0 if self.clip is None else float(self.clip)
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
    """The coefficient that `clip_grad_norm_` has left for the coming step, and which gradients it belongs to.

    Each of these gradients is marked with its version. A gradient that was replaced or written to in between is not
    the one whose norm was taken.
    """

    def __init__(self, coefficient: Tensor, gradients: Iterable[Tensor]):
        self.coefficient = coefficient
        for g in gradients:
            g._onepass_clip = (self, g._version)  # type: ignore[attr-defined]

    def coefficient_for(self, gradients: Iterable[Tensor], writes: int) -> Tensor | None:
        """The coefficient if these are the gradients that were clipped; None if all of them are others.

        writes: how often a gradient scaler may have written to each without changing it.

        Raises RuntimeError if some are and some are not: no one coefficient would be right then.
        """
        same, others = 0, 0
        for g in gradients:
            owner, version = getattr(g, "_onepass_clip", (None, 0))
            if owner is self and version <= g._version <= version + writes:
                same += 1
            elif owner is self:
                raise RuntimeError(
                    "a gradient was written to after clip_grad_norm_, whose coefficient is multiplied in by the coming step "
                    f"(gradient of shape {tuple(g.shape)}); unscale and accumulate before clipping, or forget the clipping "
                    "with this optimizer's zero_grad()"
                )
            else:
                others += 1
        if same and others:
            raise RuntimeError(
                f"{others} of {same + others} gradients were replaced after clip_grad_norm_, whose coefficient is multiplied "
                "in by the coming step; clip once all gradients are there, or forget the clipping with this optimizer's "
                "zero_grad()"
            )
        return self.coefficient if same else None


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
    if isinstance(max_norm, bool | str) or not hasattr(max_norm, "__float__"):
        raise TypeError(f"max_norm must be a number, got {max_norm!r}")
    if math.isnan(number := float(max_norm)) or number < 0:
        raise ValueError(f"max_norm must be at least 0, got {number}")
    return number
