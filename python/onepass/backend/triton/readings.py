"""Whether the tensors of a step are what they were at the last one, asked of all of them at once: read one by one in Python,
many small tensors take the host longer than their step."""

from __future__ import annotations

from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from ...sharding import is_placed
from ...torch_compat import local_of
from .. import compiled, direct_reads
from .bound_param import BoundParam, Wanted

# What a step depends on, to be compared: the addresses of the gradients; their metadata, and which there are; the addresses
# and metadata of all other tensors, and the identities of the state's entries. Bytes from the compiled module, else lists.
Description = tuple[Any, Any, Any]


def described_in_python(params: list[Tensor], state: Any) -> Description:
    given = [p.grad for p in params]
    if not all([g is None or is_placed(g, p) for p, g in zip(params, given, strict=True)]):
        raise TypeError  # as of a gradient that cannot be read
    gradients = [local_of(g) for g in given if g is not None]
    own = [*state.values()]
    names = [*chain.from_iterable(own)]
    values = [*chain.from_iterable(map(dict.values, own))]
    others = [local_of(t) for t in params + [t for t in values if isinstance(t, Tensor)]]
    return (
        [g.data_ptr() for g in gradients],
        ([g is None for g in given], [g.is_neg() for g in gradients], *metadata_of(gradients)),
        ([*map(id, chain(state, own, names, values))], [t.data_ptr() for t in others], *metadata_of(others)),
    )


def metadata_of(tensors: list[Tensor]) -> tuple[list[Any], ...]:
    """As in `operand_key`, but without an object for each tensor, which would keep Python's garbage collector busy."""
    return (
        [t.dtype for t in tensors],
        [t.shape for t in tensors],
        [t.stride() for t in tensors],
        [t.device for t in tensors],
        [t.layout for t in tensors],
    )


class Readings:
    """What was read of all parameters when each was last read by itself."""

    def __init__(self, bound: list[BoundParam], state: Any):
        self.bound, self.state = bound, state
        self.params = [e.p for e in bound]
        self.reader = None if compiled.unavailable() else compiled._C.Reader(direct_reads.FOUND)
        self.wanted: Any = None  # None: nothing is known

    def forget(self) -> None:
        self.wanted = None

    def keep(self, wanted: list[Wanted], needs_state: bool) -> None:
        """After each parameter has been read. Operands that are copied at every step are always read one by one."""
        if any(e.operands and e.buffers for e in self.bound):
            return
        self.wanted, self.with_state = wanted, needs_state
        if self.reader is not None:
            self.reader.compare_all(self.params, self.state)
        self.description = self.describe()
        # So that no other object gets the identity of an entry.
        self.kept = [(p, own, *(own.items() if isinstance(own, dict) else ())) for p, own in self.state.items()]

    def compare(self, wanted: list[Wanted], needs_state: bool) -> Literal["same", "moved", "unknown"]:
        """moved: some gradients are elsewhere, at `addresses`, and nothing else differs."""
        if wanted != self.wanted or needs_state > self.with_state:
            return "unknown"
        before, self.description = self.description, self.describe()
        if before[1:] != self.description[1:]:
            return "unknown"
        return "same" if before[0] == self.description[0] else "moved"

    def describe(self) -> Description:
        found = None if self.reader is None else self.reader.describe(self.params, self.state)
        return found or described_in_python(self.params, self.state)

    def addresses(self) -> Tensor:
        """Of the gradients, int64."""
        addresses = self.description[0]
        if isinstance(addresses, bytes):
            return torch.frombuffer(bytearray(addresses), dtype=torch.int64)
        return torch.tensor(addresses, dtype=torch.int64, device="cpu")
