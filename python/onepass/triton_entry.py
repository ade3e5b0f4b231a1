"""A parameter of the Triton backend, its gradient and state: how they lie in memory, and what is known of them at a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .reference import working_dtype

# The address of a tensor, and what else must be as it was bound.
Facts = tuple[int, tuple[Any, ...]]


def facts_of(t: Tensor) -> Facts:
    return t.data_ptr(), (t.dtype, t.shape, t.stride(), t.device, t.layout)


def packs(shape: Sequence[int], strides: Sequence[int], projected: bool) -> bool:
    """Whether the elements fill a stretch of memory and, for a projected tensor, dim 0 is the outermost."""
    reach, outermost = 1, True
    for stride, size, dim in sorted(
        (st, si, d) for d, (st, si) in enumerate(zip(strides, shape, strict=True)) if si != 1
    ):
        if stride != reach:
            return False
        reach *= size
        outermost = dim == 0
    return outermost or not projected or shape[0] == 1


def same_layout(shape: Sequence[int], a: Sequence[int], b: Sequence[int]) -> bool:
    return all(size == 1 or x == y for size, x, y in zip(shape, a, b, strict=True))


class Entry:
    """One parameter, as it was bound, and what is known of it at this step."""

    def __init__(self, p: Tensor, group: int, projected: bool):
        self.p, self.group, self.projected = p, group, projected
        self.rows = p.shape[0] if projected else 1
        self.length = p.numel() // self.rows
        self.form = facts_of(p)[1]
        self.dtype = str(p.dtype).removeprefix("torch.")
        self.operands: list[Tensor] = []  # p, g, the moments; empty without a gradient
        self.step: Tensor | None = None
        self.counter: Tensor | None = None
        self.negated = self.fresh = False
        self.facts: list[Facts] = []
        self.forms: list[tuple[Any, ...]] = []
        self.buffers: dict[int, Tensor] = {}  # for operands that do not lie as the kernels need them
        self.cohort: Any = None

    def expected(self, moments: int, counted: bool, capturable: bool) -> list[tuple[Any, ...]]:
        """How a gradient and a state look that were not there when the parameter was bound."""
        dtype, *like = self.form  # as it was bound: another dtype or shape needs another plan
        work, one = working_dtype(dtype), (torch.Size(()), ())
        forms: list[tuple[Any, ...]] = [self.form, self.form, *[(work, *like)] * moments]
        if counted:
            forms.append((torch.float32, *one, like[2] if capturable else torch.device("cpu"), torch.strided))
        if self.projected:
            forms.append((torch.uint8, *one, like[2], torch.strided))
        return forms

    def lay_out(self) -> None:
        """Makes a buffer for each operand that does not lie as the others, or not row after row."""
        p = self.p
        strides: Sequence[int] = p.stride()
        if not packs(p.shape, strides, self.projected):
            strides = torch.empty(p.shape, device="meta").stride()
        self.buffers = {
            i: torch.empty_strided(t.shape, strides, dtype=t.dtype, device=t.device)
            for i, t in enumerate(self.operands)
            if t.numel() and not same_layout(p.shape, t.stride(), strides)
        }

    def gather(self) -> None:
        for i, buffer in self.buffers.items():
            buffer.copy_(self.operands[i])

    def scatter(self) -> None:
        for i, buffer in self.buffers.items():
            if i != 1:  # the gradient is read only
                self.operands[i].copy_(buffer)

    def addresses(self) -> list[int]:
        """Of p, g, and two moments."""
        found = [
            self.buffers[i].data_ptr() if i in self.buffers else self.facts[i][0] for i in range(len(self.operands))
        ]
        return found + [0] * (4 - len(found))

    @property
    def aligned(self) -> bool:
        return all(address % 16 == 0 for address in self.addresses())

    @property
    def negative(self) -> bool:
        """Whether the gradient is the negative of what the kernel reads; torch resolves that in a buffer."""
        return self.negated and 1 not in self.buffers
