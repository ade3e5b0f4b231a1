"""A report of the versions, the devices and the usable backends of this machine, and a self-test: `python -m onepass doctor`."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import SGD, SGDP, Adam, AdamP, AdamProx, AdamProxL2, AdamW, __version__, backends
from .backend import compiled

SHAPES = ((64, 3, 3, 3), (48, 40), (7, 1001), (33,), ())
OPTIMIZERS: tuple[Any, ...] = (Adam, AdamW, AdamProx, AdamProxL2, AdamP, SGD, SGDP)
ALLOWED = 8  # units in the last place between a compiled backend and the reference, after ten steps

Paint = Callable[[str, str], str]  # a text in a colour: "good", "bad" or "quiet"


def findings() -> dict[str, Any]:
    """The versions, the devices, and the backends with the reasons why they cannot be used."""
    found: dict[str, Any] = {
        "onepass": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "threads": torch.get_num_threads(),
        "openmp": openmp_runtimes(),
        "backends": backends(),
    }
    if compiled.unavailable() is None:
        found |= {
            "instruction_set": compiled._C.isa(),
            "instruction_sets": list(compiled._C.isas()),
            "cuda_architectures": compiled._C.cuda_archs or None,
            "build": compiled._C.build_flags,
        }
    return found


def openmp_runtimes() -> list[str]:
    """The OpenMP libraries that this process has loaded. With two, threads wait for each other's, and steps take many times as long."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    paths = {line.split(maxsplit=5)[5] for line in lines if "/" in line}
    return sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp")))


def told(found: dict[str, Any], paint: Paint) -> Iterator[str]:
    """Lines that say it."""
    yield f"onepass {found['onepass']}, torch {found['torch']}, Python {found['python']}, {found['machine']}"
    for name, reason in found["backends"].items():
        yield f"  {name:<10} {paint('usable', 'good') if reason is None else paint(reason, 'quiet')}"
    if "instruction_set" in found:
        yield f"instruction set: {found['instruction_set']} of {', '.join(found['instruction_sets'])}"
        yield f"threads: {found['threads']}"
        yield f"CUDA kernels: {found['cuda_architectures'] or 'not built'}"
        yield f"built with {found['build']}"
    if found["gpus"]:
        yield f"GPUs: {', '.join(found['gpus'])}"
    if len(found["openmp"]) > 1:
        yield paint(f"two OpenMP runtimes are loaded, which slows steps down: {', '.join(found['openmp'])}", "bad")


# ------------------------------------------------------------------ self-test


def largest_difference(cls: Any, backend: str, device: str = "cpu") -> float:
    """The largest relative difference from the reference after ten steps on every dtype and a few shapes, in units in the last place."""
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


def self_test(paint: Paint, say: Callable[[str], None]) -> dict[str, Any]:
    """Steps every optimizer on every usable backend beside the reference."""
    started, results = time.perf_counter(), []
    for backend in [name for name, reason in backends().items() if reason is None and name != "reference"]:
        device = "cuda" if backend != "cpu" and torch.cuda.is_available() else "cpu"
        for cls in OPTIMIZERS:
            units = largest_difference(cls, backend, device)
            agrees = units <= ALLOWED
            verdict = "same bits" if units == 0 else f"within {units:.2g} units in the last place"
            said = paint(verdict, "good") if agrees else paint(f"DIFFERS: {verdict}", "bad")
            say(f"  {backend:<6} {cls.__name__:<10} {said}")
            results.append({"backend": backend, "optimizer": cls.__name__, "units": units, "agrees": agrees})
    passed, seconds = all(result["agrees"] for result in results), time.perf_counter() - started
    say(paint(f"self-test {'passed' if passed else 'FAILED'} in {seconds:.1f} s", "good" if passed else "bad"))
    return {"passed": passed, "seconds": round(seconds, 1), "results": results}
