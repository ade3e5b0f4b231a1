"""What distinguishes one optimizer class from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimizerSpec:
    """The update rule of an optimizer class, its state and its weight decay.

    rule: "adam" (moments m and v) or "momentum" (momentum buffer b).
    moments: the state keys of the moments, as torch.optim or the adamp package names them.
    decay: "l2" (g += wd*p), "decoupled", "proximal", "proximal_l2" (the prox in Adam's own metric), or
        "group": the param group's `decay` is "decoupled" or "proximal".
    projected: whether AdamP's projection applies.
    counted: whether a parameter's state has a step count.
    lazy_buffer: torch.optim.SGD's momentum buffer: none while momentum is 0, and the first gradient enters undampened.
    """

    rule: Literal["adam", "momentum"]
    moments: tuple[str, ...]
    decay: Literal["l2", "decoupled", "proximal", "proximal_l2", "group"]
    projected: bool = False
    counted: bool = True
    lazy_buffer: bool = False

    @property
    def decoupled(self) -> bool:
        """Whether weight decay stays out of the gradient, so that D does not divide it: the decoupled_weight_decay of
        torch.optim.Adam."""
        return self.decay not in ("l2", "proximal_l2")

    def class_whose_decay_is(self, decoupled: bool) -> str:
        """The class with this rule that has the other kind of weight decay."""
        if self.rule == "momentum":
            return "onepass.SGDP" if decoupled else "onepass.SGD"
        return "onepass.AdamW" if decoupled else "onepass.Adam"
