"""The factor of the gradients of a step, and clipping by the norm of all of them.

The coefficient of a clipping is multiplied in by the next step, and no gradient is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .checks import Group, name_of
from .exchange import summed
from .execution_state import ExecutionState
from .forks import one_thread_after_fork
from .hyperparams import Hyper
from .pending_clip import Clip
from .scaling import NO_SCALING, Scaling
from .sharding import axis
from .torch_compat import TorchOptimizer, disable_dynamo, is_flat_parameter, is_fsdp
from .values import holds_truth, truth_of


class ScaledGradients(TorchOptimizer):
    """The part of an optimizer that multiplies its gradients by a factor: of clipping, and of a gradient scaler."""

    _execution: ExecutionState

    def _make_ready(self, scaled: bool, needs_state: bool) -> list[Hyper]:
        raise NotImplementedError

    @disable_dynamo
    @one_thread_after_fork
    def clip_grad_norm_(
        self, max_norm: float | Tensor, *, error_if_nonfinite: bool = False, process_groups: Sequence[Any] = ()
    ) -> Tensor:
        """Makes the next step clip the norm of all gradients of this optimizer, taken as one vector, to `max_norm`.

            total_norm = sqrt(sum over all groups of |g|^2)        g = min(1, max_norm/(total_norm + 1e-6))*g

        The same as `torch.nn.utils.clip_grad_norm_(params, max_norm)`, but the gradients are read once and not written:
        the next step multiplies them by the coefficient, and no later one. A second call clips the clipped gradients, or
        starts anew if all gradients are new. With a `torch.amp.GradScaler`, call `scaler.unscale_(optimizer)` before.
        `zero_grad` forgets the coefficient; a copy of the optimizer does not have it.

        Args:
            max_norm: at least 0.
            process_groups: of torch.distributed, whose ranks have other parameters, such as the stages of a pipeline: the
                norm is then of all of theirs together. All of their ranks call this.
            error_if_nonfinite: raise RuntimeError if the norm is infinite or NaN, which waits for the device. Otherwise
                such a norm makes the coefficient 0 or NaN, as in torch.

        Returns the norm before clipping, a tensor of one number on the device of the first group: float32, or float64 if
        some parameter is; sums are taken in float64, in one fixed order. Of DTensors it is the norm of the whole gradients, and the
        same bits on all ranks.

        Raises what `step` raises, and ValueError for a parameter that FSDP has sharded. The step raises RuntimeError if a
        gradient was replaced or written to in between; writes through `.data` and by collectives are not detected.
        """
        limit = checked_max_norm(max_norm)
        if truth_of(error_if_nonfinite) is None:
            raise TypeError(f"error_if_nonfinite must be True or False, got {error_if_nonfinite!r}")
        check_whole(self.param_groups)
        clip = self._execution.clip
        earlier = clip.coefficient_for(self.param_groups, may_be_new=True) if clip else None
        self._make_ready(scaled=True, needs_state=False)
        backends, exchange = self._execution.backends, self._execution.exchange
        if exchange:
            square_sums = [exchange.square_sum(backends)]
        else:
            square_sums = [backend.square_sum() for backend in backends]
        square_sums = over_groups(square_sums or [torch.zeros((), dtype=torch.float64, device="cpu")], process_groups)
        total_norm, self._execution.clip = clip_gradients(
            square_sums, self.param_groups, limit, earlier, bool(error_if_nonfinite)
        )
        return total_norm

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As in torch.optim. Forgets the coefficient of `clip_grad_norm_`."""
        self._execution.clip = None
        super().zero_grad(set_to_none)

    def _scaling(self) -> Scaling:
        """The factor of the gradients of the next step."""
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if self._execution.clip is None and grad_scale is None and found_inf is None:
            return NO_SCALING
        # To look for infinities, a scaler multiplies gradients that were not unscaled by 1.
        writes = 0 if grad_scale is None else 1
        clip = self._execution.clip
        return Scaling(clip.coefficient_for(self.param_groups, writes) if clip else None, grad_scale, found_inf)


def check_whole(groups: Sequence[Group]) -> None:
    """Raises if FSDP has sharded a parameter: the norm would be that of this process's part of the gradient."""
    for p in (p for group in groups for p in group["params"]):
        if is_fsdp(p) or is_flat_parameter(p):
            raise ValueError(
                f"{name_of(p, groups)}: is sharded by FSDP, and so is its gradient, whose norm takes all processes; use clip_grad_norm_ of "
                "the FSDP module, before the step"
            )


def over_groups(square_sums: list[Tensor], process_groups: Sequence[Any]) -> list[Tensor]:
    """The sums of squares of all ranks of some process groups, which have other parameters."""
    if process_groups:
        total = added_up(square_sums)
        for group in process_groups:
            total = summed(total, axis(group))
        square_sums = [total]
    return square_sums


def added_up(square_sums: list[Tensor]) -> Tensor:
    """On the device of the first."""
    return torch.stack([x.to(square_sums[0].device) for x in square_sums]).sum()


def total_norm_of(square_sums: list[Tensor], clip: Tensor | None, dtype: torch.dtype) -> Tensor:
    """sqrt of the sum of `square_sums` (float64, each on its device), times the coefficient of an earlier clipping."""
    norm = added_up(square_sums).sqrt()
    if clip is not None:
        norm = norm * clip.to(norm.device)
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
