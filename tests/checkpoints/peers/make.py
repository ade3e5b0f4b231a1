"""Writes the state dicts of other libraries' optimizers that the recipes of docs/migration.md are tested on, once.

    pip install --no-deps bitsandbytes torch-optimi
    python tests/checkpoints/peers/make.py

For each: the arguments, parameters before and after, gradients of every step, the state dict after `STEPS` of them, and the
parameters after one further step.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import optimi
import torch
from torch import Tensor

STEPS = 3
SHAPES = [(8, 65), (300,)]
ARGUMENTS: dict[str, Any] = dict(lr=1e-2, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)


def random(seed: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


def saved(make: Any, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    params = [torch.nn.Parameter(p) for p in random(0, dtype)]
    opt = make(params, **ARGUMENTS, **more)
    gradients = [random(1 + step, dtype) for step in range(STEPS + 1)]
    state, before = {}, []
    for step, own in enumerate(gradients):
        if step == STEPS:
            state, before = copy.deepcopy(opt.state_dict()), [p.detach().clone() for p in params]
        for p, g in zip(params, own, strict=True):
            p.grad = g.clone()  # optimi writes to it
        opt.step()
    after = [p.detach().clone() for p in params]
    return {"arguments": ARGUMENTS, "params": before, "gradient": gradients[-1], "state": state, "after": after}


if __name__ == "__main__":
    folder = Path(__file__).parent
    eight = saved(bitsandbytes.optim.AdamW8bit, torch.float32, min_8bit_size=512)
    torch.save(eight, folder / f"bitsandbytes-{bitsandbytes.__version__}.pt")
    kahan = saved(optimi.AdamW, torch.bfloat16, kahan_sum=True)
    torch.save(kahan, folder / f"optimi-{optimi.__version__}.pt")
