"""Writes the checkpoint of this version: <version>.pt, once, when it is released. It is never made again.

    PYTHONPATH=tests/support python tests/checkpoints/make.py

For each optimizer, and each of its ways to store weights and moments: its arguments, two parameters, their gradients, a state
dict after some steps, and the parameters after one further step with the backend "cpu".
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import onepass
from drive import feed, train
from records import RECORDS, Record
from tensors import values

FOLDER = Path(__file__).parent
STEPS = 4


# The dtypes of the two parameters and the arguments, by the ending of a key of the file. The first parameter is projected;
# with no ending the second has moments wider than itself.
STORED: dict[str, tuple[tuple[torch.dtype, ...], dict[str, Any]]] = {
    "": ((torch.float32, torch.bfloat16), {}),
    ", exact weights": ((torch.bfloat16,) * 2, {"master_weights": True, "state_dtype": torch.bfloat16}),
    ", stochastic rounding": ((torch.bfloat16,) * 2, {"stochastic_rounding": True, "seed": 3}),
    ", 8 bits": ((torch.float32,) * 2, {"state_dtype": "8bit"}),
}


def takes(record: Record, stored: str) -> bool:
    return stored != ", 8 bits" or "exp_avg" in record.moments


def start(dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    return [
        values(shape, dtype, seed) for seed, (shape, dtype) in enumerate(zip(((3, 4), (5,)), dtypes, strict=True), 1)
    ]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def saved(record: Record, stored: str) -> dict[str, Any]:
    dtypes, chosen = STORED[stored]
    arguments = {**record.typical, **chosen, "decouple_lr": True}  # so that initial_lr is there
    params = start(dtypes)
    opt = train(record.make(params, backend="cpu", **arguments), range(STEPS))
    opt.param_groups[0]["lr"] /= 2
    feed(opt, STEPS)
    out = {"arguments": arguments, "parameters": clones(params), "state_dict": copy.deepcopy(opt.state_dict())}
    opt.step()
    return {**out, "gradients": clones([p.grad for p in params if p.grad is not None]), "continued": clones(params)}


def main() -> None:
    path = FOLDER / f"{onepass.__version__}.pt"
    if path.exists():
        raise SystemExit(f"{path} is there already: a released format is not written anew")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cases = [(name, stored) for name, record in RECORDS.items() for stored in STORED if takes(record, stored)]
        torch.save({name + stored: saved(RECORDS[name], stored) for name, stored in cases}, path)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
