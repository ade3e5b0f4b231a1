"""Steps that test_sanitized.py and sanitize.py run under sanitizers: tensors end where their memory does, so that an access
beyond either end is detected. pytest does not collect this file by itself.

    python tests/support/sanitized_cases.py {emulated | cpu} {heap | page}

takes four steps, each with one operand an element short, which must be detected, and prints the result of each.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import onepass
from oracles import Arguments
from records import Record, each_dtype, each_variant_in
from tensors import gradient, values

# Rows for a lane, a subgroup, a warp, a block; rows across vectors, cached rows and rows that are cut; vectors.
SHAPES = [(), (1,), (7,), (3, 5), (8, 8), (5, 17), (3, 7, 3, 3), (40, 9), (33, 129), (9, 1025), (2, 15_001), (9001,)]
# The CPU backend cuts only longer rows, and uses several threads only for more elements.
LARGE = {"cpu": [(2, 33_001), (65_537,)], "emulated": []}
each_place = pytest.mark.parametrize(("backend", "place"), [("emulated", "heap"), ("cpu", "heap"), ("cpu", "page")])
# Elements between the beginning of the memory and that of the tensor.
OFFSETS = {"p": (0, 1, 3), "g": (0, 1, 2)}


def at_a_page(start: Tensor, beyond: int = 0) -> Tensor:
    """A copy that ends at a protected page: AddressSanitizer does not check the masked loads and stores of AVX-512, but the
    processor does. The last `beyond` elements are not copied: they are in that page."""
    size = -(-start.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    room = mmap.mmap(-1, size + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(room)) + size
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    first = size - start.nbytes + beyond * start.itemsize
    copy = torch.frombuffer(room, dtype=start.dtype, offset=first, count=start.numel())
    kept = start.numel() - beyond
    copy[:kept].copy_(start.flatten()[:kept])
    return copy.view(start.shape)


def placed(start: Tensor, offset: int, place: str) -> Tensor:
    """A copy that ends where its own memory ends."""
    if place == "page":
        return at_a_page(start)
    memory = torch.empty(offset + start.numel(), dtype=start.dtype)
    return memory[offset:].view(start.shape).copy_(start)


def parameters(backend: str, dtype: torch.dtype, offset: int, place: str) -> list[Tensor]:
    shapes = SHAPES + LARGE[backend]
    return [placed(values(shape, dtype, seed, 0.7), offset, place) for seed, shape in enumerate(shapes)]


def gradients(params: list[Tensor], offset: int, place: str, time: int) -> Iterator[Tensor]:
    for i, p in enumerate(params):
        kind = ("none", "channel", "layer")[(i + time) % 3]
        yield placed(gradient(kind, p, i) if p.dim() > 1 else torch.ones_like(p), offset, place)


@each_place
@each_variant_in([torch.float32])  # accesses depend little on the variant
def test_no_access_outside(backend: str, place: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    offsets = zip(OFFSETS["p"], OFFSETS["g"], strict=True) if place == "heap" else [(0, 0)]
    for of_p, of_g in offsets:
        params = parameters(backend, dtype, of_p, place)
        opt = record.make(params, backend=backend, **arguments)
        for time in range(2):
            for p, g in zip(params, gradients(params, of_g, place, time), strict=True):
                p.grad = g
            opt.step()
            for state in opt.state.values():
                state.update({key: placed(state[key], 0, place) for key in record.moments if key in state})


@each_place
@each_dtype
def test_no_access_outside_strided_tensors(backend: str, place: str, dtype: torch.dtype) -> None:
    params = [p.T for p in parameters(backend, dtype, 0, place) if p.dim() == 2]
    opt = onepass.AdamP(params, backend=backend, weight_decay=0.1)
    for time in range(2):
        for i, p in enumerate(params):
            p.grad = placed(gradient(("none", "channel")[time], p, i), 1, place)
        opt.step()


OPERANDS = ("p", "g", "exp_avg", "exp_avg_sq")


def step_with_a_short(operand: str, backend: str, place: str) -> None:
    p = values((40, 9), torch.float32, 1)
    p.grad = values((40, 9), torch.float32, 2)
    opt = onepass.AdamP([p], backend=backend)
    opt.step()
    short = {"p": p, "g": p.grad}.get(operand, opt.state[p].get(operand))
    assert short is not None
    if place == "page":
        short.data = at_a_page(short, beyond=1)
    else:
        short.untyped_storage().resize_(short.nbytes - short.itemsize)
    opt.step()


def main(backend: str, place: str) -> None:
    torch.set_num_threads(1)
    for operand in OPERANDS:
        child = os.fork()
        if child == 0:
            step_with_a_short(operand, backend, place)
            os._exit(0)
        print(operand, "found out" if os.waitpid(child, 0)[1] else "not noticed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
