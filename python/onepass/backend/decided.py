"""Which parameters the last step has decided, where only the device knows whether it was skipped."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Decided = list[tuple[int, Tensor]]  # projected parameters of a step, with their numbers in the plan


class DecidedParams:
    """The parameters whose gates were decided by the last step that was not skipped.

    Whether a scaled step was skipped is known on its device only. So the newest steps are kept, oldest first, each with its
    found_inf (None if it was not skipped), which is not read as long as all of them have decided the same parameters.
    """

    LONGEST = 8

    def __init__(self, decided: Decided):
        self.steps: list[tuple[Tensor | None, Decided]] = [(None, decided)]

    def add(self, decided: Decided, found_inf: Tensor) -> None:
        self.steps = [*self.steps, (found_inf, decided)][-self.LONGEST :]
        numbers = [[number for number, _ in each] for _, each in self.steps]
        if numbers.count(numbers[0]) == len(numbers):
            self.steps = [(None, decided)]

    def last(self) -> Decided:
        """Waits for the device if the steps differ."""
        while self.steps and self.steps[-1][0] is not None and float(self.steps[-1][0]) != 0:
            self.steps.pop()
        self.steps = [(None, self.steps[-1][1] if self.steps else [])]
        return self.steps[0][1]


def rows_of(table: Tensor, rows: Iterable[int]) -> Tensor:
    """A copy of some rows. No index is sent to the device, which would wait for it."""
    each = table.unbind()
    return torch.stack([each[row] for row in rows])
