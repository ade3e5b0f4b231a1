"""The factor of the gradients of a step: the scale of a gradient scaler and the coefficient of clipping.

Neither is written to the gradients: the kernels multiply each gradient by it when they read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """Tensors of one number, on any device; None where there is nothing to do.

    clip: the coefficient of `clip_grad_norm_`.
    grad_scale: the factor of the loss, by which the gradients are divided.
    found_inf: the step is skipped unless it is 0.
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
        """The factor of the gradients. Waits for the device that the tensors are on. Meta tensors have no values, and
        neither does the norm of their gradients."""
        factor = 1.0 if self.clip is None or self.clip.is_meta else float(self.clip)
        return factor if self.grad_scale is None else factor / float(self.grad_scale)

    @property
    def skips(self) -> bool:
        """Whether the step is skipped. Waits for the device that the tensors are on."""
        return self.found_inf is not None and float(self.found_inf) != 0

    @property
    def known_to_skip(self) -> bool:
        """`skips`, as far as it can be known without waiting for a device."""
        return self.found_inf is not None and self.found_inf.device.type == "cpu" and self.skips


NO_SCALING = Scaling()


def _number(x: Tensor) -> Tensor:
    """In a dtype that the kernels read."""
    return x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
