"""A parameter of the Triton backend with its gradient and state: layout, addresses, and copies where they are needed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...blocks import SCALE, rows_of, scale_shape
from ...masters import MASTER
from ...precision import Precision
from ...sharding import has_gate, is_placed, shard_of
from ...spec import OptimizerSpec
from ...torch_compat import local_of

# The address of a tensor, and its metadata, which must not change after binding.
OperandKey = tuple[int, tuple[Any, ...]]
# Of a group: the state keys of the moments, whether the device counts, and whether there is a plan, so that only the metadata
# that it was made for will do.
Wanted = tuple[Sequence[str], bool, bool]


def operand_key(t: Tensor) -> OperandKey:
    return t.data_ptr(), (t.dtype, t.shape, t.stride(), t.device, t.layout)


def packs(shape: Sequence[int], strides: Sequence[int], projected: bool) -> bool:
    """Whether the elements are contiguous in some order of dimensions and, for a projected tensor, dim 0 is the outermost."""
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


class BoundParam:
    """One parameter: its metadata when it was bound, and its operands at this step."""

    def __init__(self, spec: OptimizerSpec, p: Tensor, group: int, number: int, precision: Precision):
        self.p, self.group, self.number = p, group, number
        self.projected = projected = has_gate(spec, p)
        self.master = precision.has_master(p.dtype)
        self.stochastic = precision.rounds_stochastically(p.dtype)
        self.counted, self.draws = precision.is_counted(spec, p.dtype), precision.draws(spec, p)
        self.moment = precision.moment_dtype(p)
        self.has_scales = self.moment == torch.uint8
        # Of the plan: blocks restart at each row too, and where rows are split, the places of their elements do.
        shard, own = shard_of(p), local_of(p)
        self.first, self.split = (shard.first, shard.split) if shard else (0, False)
        self.length = self.whole_length = own.numel()
        self.rows, self.elements = 1, own.numel()
        if p.dim() > 1 and p.numel() > 0 and (projected or self.has_scales or (self.split and self.draws)):
            self.rows, self.length, self.whole_length = own.size(0), prod(own.shape[1:]), rows_of(p.shape)[1]
        self.param_metadata = operand_key(own)[1]
        self.dtype, self.moment_dtype = (str(d).removeprefix("torch.") for d in (p.dtype, self.moment))
        self.other_gradient = ""  # the dtype of the last gradient, if it is another than that of the parameter
        # p, g, the moments, the remainder: p alone between two steps; empty without a gradient.
        self.operands: list[Tensor] = []
        self.operand_count, self.has_remainder = 0, False
        self.scales: list[Tensor] = []  # of the moments of 8 bits
        self.step: Tensor | None = None
        self.counter: Tensor | None = None
        self.negated = self.first_step = False
        self.new_buffer: Tensor | None = None  # kept, so that no other tensor has its address
        self.keys: list[OperandKey] = []
        self.metadata: list[tuple[Any, ...]] = []
        self.buffers: dict[int, Tensor] = {}  # copies of operands whose layout the kernels cannot read
        self.bucket: Any = None

    def read(self, own: dict[str, Any], wanted: Wanted, needs_state: bool) -> bool:
        """Reads the addresses of the parameter, its gradient and its state `own`. False if one is not what was bound."""
        moments, on_device, planned = wanted
        p, g = local_of(self.p), self.p.grad
        counted, gated, master = self.counted, self.projected, self.master
        if g is None:
            self.operands, self.keys = [], []
            return True
        if not is_placed(g, self.p):
            return False
        if not needs_state:
            required = [*moments, *self.scale_keys(moments), *[MASTER] * master]
            required += ["step"] * counted + ["gate_counter"] * gated
            if any([own.get(key) is None for key in required]):
                moments, counted, gated, master = (), False, False, False
        g = local_of(g)
        self.operands = [p, g, *[local_of(own[key]) for key in (*moments, *[MASTER] * master)]]
        self.operand_count, self.has_remainder = len(self.operands), master
        self.scales = [local_of(own[key]) for key in self.scale_keys(moments)]
        self.step = own["step"] if counted else None
        self.counter = own["gate_counter"] if gated else None
        keys = [operand_key(t) for t in (*self.operands, *self.scales, self.step, self.counter) if t is not None]
        negated = g.is_neg()
        metadata = [one for _, one in keys]
        if metadata[0] != self.param_metadata or (
            self.first_step and moments and local_of(own[moments[0]]) is not self.new_buffer
        ):
            return False
        if metadata != self.metadata:
            if planned and metadata != self.expected(len(moments), counted, gated, master, on_device):
                return False
            self.other_gradient = "" if g.dtype == p.dtype else str(g.dtype).removeprefix("torch.")
            self.metadata = metadata
            self.keys = keys
            self.lay_out()
        elements = [*self.operands, *self.scales]
        if any(address == 0 and t.numel() for (address, _), t in zip(keys, elements, strict=False)):
            return False
        self.keys, self.negated = keys, negated
        return True

    def scale_keys(self, moments: Sequence[str]) -> list[str]:
        return [key + SCALE for key in moments] if self.has_scales else []

    def expected(
        self, moments: int, counted: bool, gated: bool, master: bool, on_device: bool
    ) -> list[tuple[Any, ...]]:
        """The metadata that a gradient and state must have if they were missing when the parameter was bound. counted, gated, master:
        whether there are a step count, a gate counter and a remainder."""
        like = self.param_metadata[1:]  # as it was bound: another dtype or shape needs another plan
        one = (torch.Size(()), ())
        metadata: list[tuple[Any, ...]] = [self.param_metadata, self.param_metadata, *[(self.moment, *like)] * moments]
        metadata += [(torch.int16, *like)] * master
        if self.has_scales:
            shape = torch.Size(scale_shape(like[0]))
            metadata += [(torch.uint8, shape, (shape[1], 1), like[2], torch.strided)] * moments
        if counted:
            metadata.append((torch.float32, *one, like[2] if on_device else torch.device("cpu"), torch.strided))
        if gated:
            metadata.append((torch.uint8, *one, like[2], torch.strided))
        return metadata

    def lay_out(self) -> None:
        """Makes a buffer for each operand whose rows are not contiguous, or whose layout is not the parameter's."""
        p = self.operands[0]
        strides: Sequence[int] = p.stride()
        in_order: Sequence[int] = torch.empty(p.shape, device="meta").stride()
        # The random bits of an element go by its place in the order of the shape.
        if not packs(p.shape, strides, self.projected) or (self.draws and not same_layout(p.shape, strides, in_order)):
            strides = in_order
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
        """Addresses of p, g, two moments and the remainder; 0 where there is none."""
        found = [
            self.buffers[i].data_ptr() if i in self.buffers else self.keys[i][0] for i in range(self.operand_count)
        ]
        remainder = [found.pop()] if self.has_remainder else [0]
        return found + [0] * (4 - len(found)) + remainder

    def scale_addresses(self) -> list[int]:
        """Addresses of the scales of two moments; 0 where there are none."""
        found = [address for address, _ in self.keys[self.operand_count : self.operand_count + len(self.scales)]]
        return found + [0] * (2 - len(found))

    @property
    def aligned(self) -> bool:
        return all(address % 16 == 0 for address in self.addresses())

    @property
    def negative(self) -> bool:
        """Whether the kernels must negate the gradient that they read; a copy in a buffer is negated already."""
        return self.negated and 1 not in self.buffers
