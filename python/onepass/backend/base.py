"""The protocol between the optimizer and a backend."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..hyperparams import Hyper
from ..last_step import GateStatistics
from ..scaling import Scaling

Groups = list[dict[str, Any]]


class Backend(Protocol):
    """Steps the tensors of some param groups, all on one device. Only `run` writes to parameters, moments or step counts.

    A step is `ready`, then `run`. After a change that `ready` refuses, the optimizer makes a new backend and binds it.
    """

    name: str
    indices: list[int]  # of its param groups
    capturable: bool  # whether the device can count the steps, so that they can be captured into a CUDA graph

    def bind(self, state: Any, first: list[Tensor]) -> None:
        """Binds the optimizer's state. first: the parameters whose moments were made for the next step."""

    def ready(self, groups: Groups, hypers: list[Hyper]) -> bool:
        """Reads the address of every tensor of the next step; False if anything differs from what was bound."""

    def square_sum(self) -> Tensor:
        """The sum of squares over all gradients, float64, on their device. Only after `ready` returned True."""

    def run(self, hypers: list[Hyper], scaling: Scaling) -> None:
        """Performs the step. Only after `ready` returned True."""

    def release_gradients(self) -> None:
        """Releases the gradients of which `ready` holds references, if no step follows."""

    def verdicts(self) -> list[GateStatistics]:
        """The gate statistics of the last step, copied without waiting for the device; empty if no gate was decided."""
