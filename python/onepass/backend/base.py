"""The protocol between the optimizer and a backend."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..hyperparams import Hyper
from ..last_step import GateStatistics
from ..scaling import Scaling

Groups = list[dict[str, Any]]


# Statistics of a tensor, float64: sums over its elements; the largest squared cosine of its rows; how many rows it has.
# Of one tensor with rows in several plans all but the cosine are added up, and the largest cosine is taken: NaN if any is NaN,
# which a MAX of a communication library may drop. All are 0 for a tensor without a gradient.
STATS = ("pg", "pp", "gg", "pu", "max_cosine_squared", "rows")


class Backend(Protocol):
    """Steps the tensors of some param groups, all on one device. Only the phases write to parameters, moments or counts.

    A step is `ready`, then the phases, from `begin` to `correct` (phases.py). After a change that `ready` refuses, the
    optimizer makes a new backend and binds it.
    """

    name: str
    indices: list[int]  # of its param groups
    params: list[list[Tensor]]  # of each of them
    hypers: list[Hyper]  # likewise, at this step
    capturable: bool  # whether the device can count the steps, so that they can be captured into a CUDA graph

    def bind(self, state: Any, first: list[Tensor], exchanges: bool = False) -> None:
        """Binds the optimizer's state.

        first: the parameters whose lazy buffer is new.
        exchanges: whether `stats` are changed between `update` and `decide`. No gate is decided before the update then.
        """

    def ready(self, groups: Groups, hypers: list[Hyper], needs_state: bool) -> bool:
        """Reads the address of every tensor of the next step; False if anything differs from what was bound, or cannot be
        stepped. needs_state: whether missing state counts as that. `square_sum` needs none."""

    def square_sum(self) -> Tensor:
        """The sum of squares over all gradients, float64, on their device. Only after `ready` returned True."""

    def square_sums(self, members: Tensor) -> Tensor:
        """The same over the gradients of some sets of tensors. members: bool, of shape (sets, tensors), on the device."""

    def begin(self, hypers: list[Hyper], scaling: Scaling) -> bool:
        """Begins a step: computes its scalars. False, and no step, if it is known to be skipped. Only after
        `ready` returned True, state included."""

    def gate_stats(self) -> None:
        """Decides the gates that must be known before the update."""

    def update(self) -> None:
        """Steps the moments, and p as far as the gates are predicted or known; sums up `stats`."""

    @property
    def stats(self) -> Tensor:
        """The statistics of every tensor, in the order of the groups: a view, of shape (tensors, len(STATS)). Written by
        `update` and read by `decide`; only where `exchanges`."""

    @property
    def row_sums(self) -> Tensor:
        """<p,g> <p,p> <g,g> <p,u> of what is here of the rows of every projected tensor whose rows are split over ranks: of shape (rows,
        4), float64. Written by `update`; only where `exchanges`."""

    def complete_rows(self, sums: Tensor, c: Tensor) -> None:
        """Takes the sums of these rows over all ranks, and the projection coefficient of each, before `decide`."""

    def decide(self) -> None:
        """Decides the gates that `gate_stats` has not decided."""

    def correct(self) -> None:
        """Writes p where its gate was mispredicted or not known, and ends the step: counts it, where the host counts."""

    def unstepped(self) -> list[Tensor]:
        """Those of `first` with which no step was taken yet. Waits for the device if it alone knows."""

    def release_gradients(self) -> None:
        """Releases the gradients of which `ready` holds references, if no step follows."""

    def verdicts(self) -> list[GateStatistics]:
        """The gate statistics of the last step, copied without waiting for the device; empty if no gate was decided."""
