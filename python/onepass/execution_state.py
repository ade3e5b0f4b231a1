"""The mutable state of an optimizer besides its groups and state: backends, caches, pending clipping."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from torch import Tensor

from .backend.base import Backend
from .checkpoint_state import Loading
from .exchange import Exchange
from .hyperparams import Hyper
from .pending_clip import Clip


@dataclass(eq=False)
class ExecutionState:
    """One object for the life of an optimizer, changed in place: a wrapper that borrows the optimizer's methods, as
    Lightning's does, has attributes of its own, and shares this.

    backends, cached, layout, members, first: derived from groups and state; dropped by `forget`, and derived anew when they are
        needed. cached: of each group, its values and their `Hyper`. layout: identity of the state, identity and backend
        name of the groups. members: identities of the parameters of all groups, None if unknown. They are stale once
        groups were changed by hand, so a parameter that is found there must be looked for in the groups.
    stepped: the backends of the last step that was not skipped.
    loading: the content of a state dict that is being loaded.
    graph_tensors: the tensors to which captured CUDA graphs of steps point.
    counts_on_device: whether step counts are on the parameters' device in groups that are not capturable too: once a step
        was scaled on a device, as only the device knows whether it was skipped.
    clip: the coefficient that `clip_grad_norm_` has left for the next step.
    first: the parameters whose lazy buffers were new when the backends were bound, with the buffers.
    exchange: what ranks exchange, None without DTensors; sharded: the DTensors among the parameters. Both since the backends were
        bound.
    warned: keys of param groups that were warned of.
    had_matrices: whether a parameter with rows was added to a group.
    """

    backends: list[Backend] = field(default_factory=list)
    cached: list[tuple[list[Any], Hyper] | None] = field(default_factory=list)
    layout: list[Any] = field(default_factory=list)
    stepped: list[Backend] = field(default_factory=list)
    loading: Loading | None = None
    graph_tensors: list[Tensor] = field(default_factory=list)
    counts_on_device: bool = False
    clip: Clip | None = None
    first: dict[Tensor, ref[Tensor]] = field(default_factory=dict)
    members: set[int] | None = None
    exchange: Exchange | None = None
    sharded: list[Tensor] = field(default_factory=list)
    warned: set[str] = field(default_factory=set)
    had_matrices: bool = False

    def forget(self) -> None:
        self.backends, self.cached, self.layout, self.members, self.first = [], [], [], None, {}
        self.exchange, self.sharded = None, []

    def unstepped(self, state: Any) -> dict[Tensor, ref[Tensor]]:
        """Those of `first` with which no step was taken, and whose buffer is still in `state`. Without backends, as when
        binding has failed, no step was."""
        left = {p for backend in self.backends for p in backend.unstepped()} if self.backends else self.first.keys()
        held = {p: [*map(id, state[p].values())] for p in left if p in state}
        return {p: self.first[p] for p, own in held.items() if id(self.first[p]()) in own}
