"""What an optimizer holds besides its groups and state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .checkpoints import Loading
from .hyper import Hyper
from .scaling import Clip

if TYPE_CHECKING:
    from .backends import Runner


@dataclass(eq=False)
class Runtime:
    """One object for as long as there is its optimizer, changed in place: a wrapper that borrows the optimizer's methods, as
    Lightning's does, has attributes of its own, and shares this.

    runners, cached, layout, members: derived from groups and state; dropped by `forget`, and derived anew when they are
        needed. cached: of each group, its values and what was made of them. layout: identity of the state, identity and
        backend of the groups. members: identities of the parameters of all groups, None if unknown. They are stale once
        groups were changed by hand, so a parameter that is found there has to be looked for in the groups.
    stepped: the runners of the last step that was taken.
    loading: what a state dict that is being loaded is to bring.
    captured: what CUDA graphs that were captured of steps still point to.
    counts_on_device: whether step counts lie beside the parameters in groups that are not capturable too: once a step
        was scaled on a device, as only the device knows whether it was taken.
    clip: what `clip_grad_norm_` has left for the coming step.
    unstepped: parameters whose state was made for a step that has not been taken yet.
    warned: keys of param groups that were warned of.
    """

    runners: list[Runner] = field(default_factory=list)
    cached: list[tuple[list[Any], Hyper] | None] = field(default_factory=list)
    layout: list[Any] = field(default_factory=list)
    stepped: list[Runner] = field(default_factory=list)
    loading: Loading | None = None
    captured: list[Tensor] = field(default_factory=list)
    counts_on_device: bool = False
    clip: Clip | None = None
    unstepped: set[Tensor] = field(default_factory=set)
    members: set[int] | None = None
    warned: set[str] = field(default_factory=set)

    def forget(self) -> None:
        self.runners, self.cached, self.layout, self.members = [], [], [], None
