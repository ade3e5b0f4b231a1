"""Writes the checkpoint of this version: <version>.pt, once, when it is released. It is never made again.

    PYTHONPATH=tests/support python tests/checkpoints/make.py

For each optimizer: its arguments, two parameters, their gradients, a state dict after some steps, and the parameters after
one further step with the backend "cpu".
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


def start() -> list[Tensor]:
    """float32, whose matrix is projected, and bfloat16, whose moments are wider than itself."""
    return [values((3, 4), torch.float32, 1), values((5,), torch.bfloat16, 2)]


def clones(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def saved(record: Record) -> dict[str, Any]:
    arguments = {**record.typical, "decouple_lr": True}  # so that initial_lr is there
    params = start()
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
        torch.save({name: saved(record) for name, record in RECORDS.items()}, path)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
