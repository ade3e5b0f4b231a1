"""What test_sanitized.py runs with the sanitizers on: tensors that end where their memory does, so that an access beyond
either end is seen. Not collected by itself.

    python tests/sanitized_cases.py

steps four times, each time with one operand an element short, which must be found out, and prints how each step ended.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

import onepass
from oracles import Arguments
from records import Record, each_dtype, each_variant_in
from tensors import gradient, values

# A lane, a team, a warp, a block; rows that straddle vectors, rows that are held and rows that are cut; vectors.
SHAPES = [(), (1,), (7,), (3, 5), (8, 8), (5, 17), (3, 7, 3, 3), (40, 9), (33, 129), (9, 1025), (2, 15_001), (9001,)]
# Elements between the beginning of the memory and that of the tensor: at 0 there is nothing before it.
OFFSETS = {"p": (0, 1, 3), "g": (0, 1, 2)}


def held(start: Tensor, offset: int) -> Tensor:
    """A copy in memory of its own, at whose end it ends."""
    memory = torch.empty(offset + start.numel(), dtype=start.dtype)
    return memory[offset:].view(start.shape).copy_(start)


def parameters(dtype: torch.dtype, offset: int) -> list[Tensor]:
    return [held(values(shape, dtype, seed, 0.7), offset) for seed, shape in enumerate(SHAPES)]


def gradients(params: list[Tensor], offset: int, time: int) -> Iterator[Tensor]:
    for i, p in enumerate(params):
        kind = ("none", "channel", "layer")[(i + time) % 3]
        yield held(gradient(kind, p, i) if p.dim() > 1 else torch.ones_like(p), offset)


@each_variant_in([torch.float32])  # which memory is reached depends little on numbers
def test_no_access_outside(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    for places in zip(OFFSETS["p"], OFFSETS["g"], strict=True):
        params = parameters(dtype, places[0])
        opt = record.make(params, backend="emulated", **arguments)
        for time in range(2):
            for p, g in zip(params, gradients(params, places[1], time), strict=True):
                p.grad = g
            opt.step()


@each_dtype
def test_no_access_outside_of_what_is_strided(dtype: torch.dtype) -> None:
    params = [p.T for p in parameters(dtype, 0) if p.dim() == 2]
    opt = onepass.AdamP(params, backend="emulated", weight_decay=0.1)
    for time in range(2):
        for i, p in enumerate(params):
            p.grad = held(gradient(("none", "channel")[time], p, i), 1)
        opt.step()


OPERANDS = ("p", "g", "exp_avg", "exp_avg_sq")


def step_with_a_short(operand: str) -> None:
    p = values((40, 9), torch.float32, 1)
    p.grad = values((40, 9), torch.float32, 2)
    opt = onepass.AdamP([p], backend="emulated")
    opt.step()
    short = {"p": p, "g": p.grad}.get(operand, opt.state[p].get(operand))
    assert short is not None
    short.untyped_storage().resize_(short.nbytes - short.itemsize)
    opt.step()


def main() -> None:
    torch.set_num_threads(1)
    for operand in OPERANDS:
        child = os.fork()
        if child == 0:
            step_with_a_short(operand)
            os._exit(0)
        print(operand, "found out" if os.waitpid(child, 0)[1] else "not noticed", flush=True)


if __name__ == "__main__":
    main()
