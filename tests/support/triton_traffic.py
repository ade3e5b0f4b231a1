"""Memory traffic of a step of the Triton backend: bytes of every load and store as the interpreter performs them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steps import set_counter
from tensors import gradient, values

Streams = dict[str, tuple[float, float]]
COUNTERS = {"none": 0, "channel": 3}


def _range(t: Tensor) -> tuple[int, int]:
    return t.data_ptr(), t.data_ptr() + t.nbytes


@contextmanager
def counted(streams: dict[str, list[Tensor]]) -> Iterator[dict[str, list[int]]]:
    """Bytes loaded and stored in the context, by stream; "tables" is all else. Masked lanes move nothing; every lane that
    reads one word of a table is counted."""
    from triton.runtime.interpreter import interpreter_builder as builder

    ranges = [(name, *_range(t)) for name, tensors in streams.items() for t in tensors]
    moved: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def note(pointers: Any, mask: Any, size: int, stored: bool) -> None:
        addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(pointers.data.shape, mask.data.shape))
        there = addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)]
        rest = there.size
        for name, begin, end in ranges:
            own = int(((there >= begin) & (there < end)).sum())
            moved[name][stored] += own * size
            rest -= own
        moved["tables"][stored] += rest * size

    own_load, own_store = type(builder).create_masked_load, type(builder).create_masked_store

    def load(pointers: Any, mask: Any, *rest: Any) -> Any:
        out = own_load(builder, pointers, mask, *rest)
        note(pointers, mask, out.data.itemsize, False)
        return out

    def store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        note(pointers, mask, pointers.get_element_ty().primitive_bitwidth // 8, True)
        return own_store(builder, pointers, value, mask, *rest)

    builder.create_masked_load, builder.create_masked_store = load, store
    try:
        yield moved
    finally:
        del builder.create_masked_load, builder.create_masked_store


def traffic(make: Any, shape: tuple[int, ...], gate: str = "none", predicted: str = "none", dtype: torch.dtype = torch.float32,
            clips: bool = False, **arguments: Any) -> tuple[Streams, float]:  # fmt: skip
    """Bytes per parameter, loaded and stored, of each operand; and of the tables."""
    p = values(shape, dtype, 1)
    opt = make([p], lr=1e-3, weight_decay=0.1, backend="triton", **arguments)
    for time in range(2):  # the second step, when all state exists
        p.grad = gradient(gate, p, 2)
        if time and "gate_counter" in opt.state[p]:
            set_counter(opt, p, COUNTERS[predicted])
        streams = {"p": [p], "g": [p.grad]}
        for name, keys in {"m": ("exp_avg", "momentum", "momentum_buffer"), "v": ("exp_avg_sq",)}.items():
            streams[name] = [opt.state[p][key] for key in keys if key in opt.state[p]]
        with counted(streams) as moved:
            if clips:
                opt.clip_grad_norm_(1e-3)
            opt.step()
    if p in opt.last_step():
        assert opt.last_step()[p].gate == gate
    found = {name: (moved[name][0] / p.numel(), moved[name][1] / p.numel()) for name in "pgmv"}
    return found, sum(moved["tables"]) / p.numel()


def total(streams: Streams) -> float:
    return sum(map(sum, streams.values()))
