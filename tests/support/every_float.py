"""Exact weights and stochastic rounding on each of the 2^32 floats: the reference's functions and the CPU kernels. Some minutes.

    PYTHONPATH=tests/support python tests/support/every_float.py

The tests take some of them; this takes all, once, after a change of masters.py, draws.py or csrc/cpu/storage.h.
"""

from __future__ import annotations

import torch
from rich.progress import track
from torch import Tensor

import onepass
from onepass.draws import rounded
from onepass.masters import joined, split

BF16 = torch.bfloat16
CHUNK = 1 << 22


def chunk(number: int) -> Tensor:
    """Floats with neighbouring bits."""
    first = number * CHUNK - (1 << 31)
    return torch.arange(first, first + CHUNK, dtype=torch.int64).to(torch.int32).view(torch.float32)


def check_parts(x: Tensor) -> None:
    """The parts of a float make it again; p is nearest, ties away from zero; a NaN stays one in p and in both."""
    p, remainder = split(x)
    back, nan = joined(p, remainder), x.isnan()
    assert torch.equal(back.view(torch.int32)[~nan], x.view(torch.int32)[~nan])
    assert torch.equal(back.isnan(), nan) and torch.equal(p.isnan(), nan)
    wide, exact = p.double(), x.double()
    fits = x.isfinite() & p.isfinite()
    gap = (x.view(torch.int32) & 0xFFFF).double() / 0x10000  # above the bfloat16 towards zero, in units
    up = wide.abs() > exact.abs()
    assert torch.equal(up[fits & (gap != 0)], (gap >= 0.5)[fits & (gap != 0)])


def check_rounding(x: Tensor) -> None:
    """Without random bits the bfloat16 towards zero, with all of them the one away from it; a NaN stays one."""
    for bits in (0, 0xFFFF):
        y = rounded(x, torch.tensor(bits, dtype=torch.int32))
        nan, own = x.isnan(), x.view(torch.int32)
        want = (own + bits) & -0x10000
        assert torch.equal(y.view(torch.int32)[~nan], want[~nan]) and torch.equal(y.isnan(), nan)


def check_kernels(x: Tensor) -> None:
    """A step of nothing of the CPU kernels keeps the weight, and of a bfloat16 that is rounded stochastically too."""
    opt = onepass.SGD([p := torch.zeros(CHUNK, dtype=BF16)], lr=0.0, master_weights=True, backend="cpu")
    opt.set_master(p, x)
    p.grad = torch.zeros_like(p)
    opt.step()
    back, finite, nan = opt.master(p), x.isfinite(), x.isnan()
    assert torch.equal(back.view(torch.int32)[finite], x.view(torch.int32)[finite])
    assert torch.equal(back.isnan(), nan) and torch.equal(p.isnan(), nan)
    q = x.view(torch.int32).bitwise_right_shift(16).to(torch.int16).view(BF16).clone()
    before = q.clone()
    q.grad = torch.zeros_like(q)
    onepass.SGD([q], lr=0.0, stochastic_rounding=True, backend="cpu").step()
    assert torch.equal(q.isnan(), before.isnan())
    assert torch.equal(q.view(torch.int16)[~q.isnan()], before.view(torch.int16)[~q.isnan()])


if __name__ == "__main__":
    for number in track(range((1 << 32) // CHUNK), "every float"):
        floats = chunk(number)
        check_parts(floats)
        check_rounding(floats)
        check_kernels(floats)
    print("right for all of them")
