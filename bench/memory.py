"""The most memory that steps take beyond parameters, gradients and moments, measured in a process of its own.

It is the peak of allocated memory (`peak.py`) over two steps, less the bytes of the optimizer's state. So the plan, scratch
space and every temporary count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from cases import Case
from cpu_cases import MEMORY, memory_shapes
from harness import LR
from inputs import Model
from peak import peak
from shapes import Shape


def measure(name: str, quick: bool) -> float:
    """The extra bytes of contender `name` over the bytes of its parameters."""
    command = [sys.executable, str(Path(__file__).resolve()), name, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"memory of {name}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def extra_share(name: str, quick: bool) -> float:
    contender = next(c for c in MEMORY if c.name == name)

    def given(shapes: tuple[Shape, ...]) -> list[torch.Tensor]:
        model = Model(Case("memory", "", shapes, (contender,), gradients="tangent"), torch.device("cpu"))
        params = model.copies(torch.float32)
        model.give(params, 0)
        return params

    # The optimizer's threads and what it allocates once for all tensors come here, not below.
    warm = contender.make(given(((64, 64), (64,))), LR)
    for _ in range(3):
        warm.step()

    params = given(memory_shapes(quick))
    optimizer = contender.make(params, LR)
    weights = sum(p.nbytes for p in params)
    highest = peak(lambda: [optimizer.step() for _ in range(2)])
    tensors = [value for own in optimizer.state.values() for value in own.values() if isinstance(value, torch.Tensor)]
    state = sum(t.nbytes for t in tensors if t.dim())
    return (highest - state) / weights


if __name__ == "__main__":
    print(json.dumps(extra_share(sys.argv[1], "--quick" in sys.argv)))
