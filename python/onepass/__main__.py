"""`python -m onepass`: versions, backends, instruction set, build flags, and a self-test against the reference."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import torch

from . import SGD, SGDP, Adam, AdamP, AdamProx, AdamProxL2, AdamW, __version__, backends
from .backend import compiled

SHAPES = ((64, 3, 3, 3), (48, 40), (7, 1001), (33,), ())
OPTIMIZERS: tuple[Any, ...] = (Adam, AdamW, AdamProx, AdamProxL2, AdamP, SGD, SGDP)


def report() -> None:
    """Prints what is installed and what can be used."""
    print(f"onepass {__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    for name, reason in backends().items():
        print(f"  {name:<10} {'usable' if reason is None else reason}")
    if compiled.unavailable() is None:
        print(f"instruction set: {compiled._C.isa()} of {', '.join(compiled._C.isas())}")
        print(f"threads: {torch.get_num_threads()}")
        print(f"CUDA kernels: {compiled._C.cuda_archs or 'not built'}")
        print(f"built with {compiled._C.build_flags}")


def largest_difference(cls: Any, backend: str, device: str = "cpu") -> float:
    """The largest relative difference from the reference after ten steps on every dtype and a few shapes."""
    units = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        generator = torch.Generator().manual_seed(0)
        start = [torch.randn(shape, generator=generator).to(device, dtype) for shape in SHAPES]
        runs = [[p.clone() for p in start] for _ in range(2)]
        optimizers = [
            cls(params, lr=1e-2, weight_decay=0.1, backend=name)
            for params, name in zip(runs, (backend, "reference"), strict=True)
        ]
        for _ in range(10):
            for i, shape in enumerate(SHAPES):
                gradient = torch.randn(shape, generator=generator).to(device, dtype)
                for params in runs:
                    params[i].grad = gradient.clone()
            for optimizer in optimizers:
                optimizer.step()
        for ours, reference in zip(*runs, strict=True):
            difference = (ours.double() - reference.double()).abs().max() / reference.double().abs().max()
            units.append(float(difference) / torch.finfo(dtype).eps)
    return float(torch.tensor(units, device="cpu").max())  # NaN if any is


def self_test() -> bool:
    """Steps every optimizer on every compiled backend beside the reference; True if all agree."""
    started, agree = time.perf_counter(), True
    for backend in [name for name, reason in backends().items() if reason is None and name != "reference"]:
        for cls in OPTIMIZERS:
            units = largest_difference(
                cls, backend, "cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu"
            )
            agree = agree and units <= 8
            verdict = "same bits" if units == 0 else f"within {units:.2g} units in the last place"
            print(f"  {backend:<6} {cls.__name__:<10} {verdict if units <= 8 else 'DIFFERS: ' + verdict}")
    print(f"self-test {'passed' if agree else 'FAILED'} in {time.perf_counter() - started:.1f} s")
    return agree


if __name__ == "__main__":
    report()
    sys.exit(0 if self_test() else 1)
