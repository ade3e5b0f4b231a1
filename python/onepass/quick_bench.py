"""The time of a step beside torch's on this machine, in seconds: `python -m onepass bench`. bench/ in the repository measures more."""

from __future__ import annotations

import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from . import AdamP, AdamProx, AdamW

# Two blocks of GPT-2: more than the caches hold.
BLOCK = ((768, 2304), (2304,), (768, 768), (768,), (768, 3072), (3072,), (3072, 768), (768,), *((768,),) * 4)
SHAPES = BLOCK * 2
WHAT = "two blocks of GPT-2"
ROUNDS = 3  # at least
BASELINE = "torch AdamW, fused"
WIDTH = 40  # of the longest bar


def contenders(params: list[Tensor]) -> dict[str, Any]:
    """Optimizers of the same parameters, each with a state of its own."""
    made: dict[str, Any] = {
        BASELINE: torch.optim.AdamW(params, lr=1e-3, fused=True),
        "torch AdamW": torch.optim.AdamW(params, lr=1e-3),
        "onepass AdamW": AdamW(params, lr=1e-3),
        "onepass AdamProx": AdamProx(params, lr=1e-3),
        "onepass AdamP": AdamP(params, lr=1e-3, weight_decay=1e-2),
    }
    try:
        adamp = importlib.import_module("adamp")
    except ImportError:
        return made
    return made | {"adamp AdamP": adamp.AdamP(params, lr=1e-3, weight_decay=1e-2)}


def measured(device: str, seconds: float, progress: Callable[[float], None]) -> dict[str, Any]:
    """Medians over interleaved rounds, in milliseconds.

    device: "cpu" or "cuda". seconds: how long to take; at least `ROUNDS` rounds are taken.
    """
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).mul_(0.02).to(device).requires_grad_() for shape in SHAPES]
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).mul_(1e-3).to(device)
    made = contenders(params)
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    for opt in made.values():
        opt.step()
    times: dict[str, list[float]] = {name: [] for name in made}
    order, begin = [*made.items()], time.perf_counter()
    while len(times[BASELINE]) < ROUNDS or time.perf_counter() - begin < seconds:
        order = order[1:] + order[:1]  # no contender always follows the same one, whose data the caches hold
        for name, opt in order:
            wait()
            start = time.perf_counter()
            opt.step()
            wait()
            times[name].append(1e3 * (time.perf_counter() - start))
        progress(min(1.0, (time.perf_counter() - begin) / seconds))
    medians = {name: statistics.median(own) for name, own in times.items()}
    return {
        "what": WHAT,
        "parameters": sum(p.numel() for p in params),
        "tensors": len(params),
        "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "rounds": len(times[BASELINE]),
        "load": round(os.getloadavg()[0], 2),
        "milliseconds": medians,
        "ratios": {name: median / medians[BASELINE] for name, median in medians.items()},
    }


def told(found: dict[str, Any]) -> Iterator[str]:
    """A table with bars. One that is longer than the room for it ends in `>`."""
    threads = f", {found['threads']} threads" if found["device"] == "CPU" else ""
    yield (
        f"A step of {found['what']}, {found['parameters'] / 1e6:.1f} M float32 parameters in {found['tensors']} tensors, on"
        f" {found['device']}{threads}: medians of {found['rounds']} rounds"
    )
    room = max(ratio for ratio in found["ratios"].values() if ratio < 4)
    for name, ratio in found["ratios"].items():
        length = round(WIDTH * ratio / room)
        bar = "#" * length if length <= WIDTH else "#" * WIDTH + ">"
        yield f"  {name:<20} {found['milliseconds'][name]:9.2f} ms  {ratio:6.2f}  {bar}"
    yield f"The second number is the time over that of {BASELINE}."
    if found["load"] > found["threads"] + 1:
        yield (
            f"Do not trust it: the load is {found['load']}, so other programs have a part of the processor, and threads wait for one "
            "another. Run it again when they have ended."
        )
