"""The order of a step: every backend performs the same phases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .backend.base import Backend
from .hyperparams import Hyper
from .scaling import Scaling


def nothing(backends: Sequence[Backend]) -> None:
    """The exchange of one process, which has every row of its tensors."""


def take_step(
    backends: Sequence[Backend],
    hypers: list[Hyper],
    scaling: Scaling,
    exchange: Callable[[Sequence[Backend]], None] = nothing,
) -> list[Backend]:
    """Steps every backend, unless it is known that the step is skipped: begin, gate_stats, update, exchange, decide, correct.

    exchange: completes `stats` of backends that were bound with exchanges=True, by those of other rows of the same tensors:
        either all processes that have such rows take a step, and call it, or none.
    Returns the backends that have stepped.
    """
    stepping = [backend for backend in backends if backend.begin(hypers, scaling)]
    for backend in stepping:
        backend.gate_stats()
    for backend in stepping:
        backend.update()
    exchange(stepping)
    for backend in stepping:
        backend.decide()
    for backend in stepping:
        backend.correct()
    return stepping
