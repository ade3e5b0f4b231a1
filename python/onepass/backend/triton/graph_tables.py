"""Tables for steps that are captured into CUDA graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import upload

# Captures between two ordinary steps. Each takes pinned memory of its own, 152 bytes for a tensor, which cannot be had
# during a capture.
CAPTURES = 8


class GraphTables:
    """Makes the tables of captured steps, and keeps what their graphs point to.

    graph_tensors: takes every tensor that a captured graph points to.
    """

    def __init__(self, device: torch.device, graph_tensors: list[Tensor]):
        self.device, self.graph_tensors = device, graph_tensors
        self.reserved: list[Tensor] = []

    def reserve(self, tensors: int, width: int) -> None:
        """Reserves pinned memory for later captures, each of a table of so many tensors."""
        missing = CAPTURES - len(self.reserved)
        if missing:
            pinned = self.device.type == "cuda"
            shape = (missing, tensors, width)
            self.reserved += torch.empty(shape, dtype=torch.int64, device="cpu", pin_memory=pinned).unbind()

    def tables(self, sent: Any, table: Tensor, others: list[Tensor]) -> Any:
        """The tables `sent` with a copy of the table of tensors, which every replay sends again from the same memory.

        others: what the kernels read besides the tables.
        """
        if not self.reserved:
            raise RuntimeError(upload.CAPTURING)
        host = self.reserved.pop()
        host.copy_(table)
        tables = replace(sent, tensors=upload.to_device(host, self.device))
        self.keep([host, *others, *[t for t in vars(tables).values() if isinstance(t, Tensor)]])
        return tables

    def keep(self, tensors: list[Tensor]) -> None:
        """Keeps tensors alive as long as the optimizer."""
        known = set(map(id, self.graph_tensors))
        self.graph_tensors += [t for t in tensors if id(t) not in known]
