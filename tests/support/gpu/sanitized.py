"""A few small steps of every optimizer, for compute-sanitizer. Prints their number."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch

from drive import gradient_at
from gpu.pair import PLACES
from gpu.target import BACKEND, synchronize
from records import RECORDS
from tensors import values

# Rows for a lane, a warp and a block, rows cut into pieces, vectors; few elements in all.
SHAPES = [(6, 20), (13,), (40, 9), (3, 1025), (1, 30_000), (1, 1)]


def main() -> None:
    starts = {dtype: [values(s, dtype, i) for i, s in enumerate(SHAPES)] for dtype in (torch.float32, torch.bfloat16)}
    steps = 0
    for record in RECORDS.values():
        for dtype, place in (
            (torch.float32, "aligned"),
            (torch.float32, "unaligned unlike"),
            (torch.bfloat16, "unaligned alike"),
            (torch.float32, "layouts mixed"),
        ):
            held = [PLACES[place].hold(start, "p") for start in starts[dtype]]
            params = [each.tensor for each in held]
            opt = record.make(params, backend=BACKEND, **record.typical)
            for time in range(2):
                gradients = [PLACES[place].hold(gradient_at(start, time), "g") for start in starts[dtype]]
                for p, gradient in zip(params, gradients, strict=True):
                    p.grad = gradient.tensor
                opt.step()
                steps += 1
            synchronize()
            for each in held:
                assert each.fetch().isfinite().all()
    print(f"{steps} steps")


if __name__ == "__main__":
    main()
