"""Wall time on the CPU."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import onepass
from cases import Case, Contender
from harness import Entry
from results_file import Row, commit

WARM = 3
SLOW_EVERY = 7


class Wall:
    """Every contender has tensors of its own, and steps in as many rounds as its case says."""

    device = torch.device("cpu")
    shares = False
    looks = True
    cache_bytes = 0

    def about(self) -> Row:
        native = getattr(onepass.backend.compiled, "_C", None)
        return {
            "date": date.today().isoformat(),
            "device": device_name(),
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else "",
            "threads": torch.get_num_threads(),
            "isa": native.isa() if native else torch.backends.cpu.get_cpu_capability(),
            "backend": "cpu" if onepass.backends()["cpu"] is None else "reference",
            "torch": torch.__version__,
            "onepass": onepass.__version__,
            "python": platform.python_version(),
            "commit": commit(),
        }

    def backend(self, name: str) -> str:
        return name

    def batches(self, case: Case) -> list[list[Contender]]:
        baseline, *others = case.contenders
        # Parameters and two moments; 40% of what is free stays for the rest of the machine.
        fit = max(2, min(6, int(0.6 * available_memory() / (12 * case.numel))))
        return [[baseline, *others[i : i + fit - 1]] for i in range(0, len(others), fit - 1)]

    def plan(self, entries: list[Entry]) -> None:
        for entry in entries:
            entry.timing.repeat = entry.case.repeat
            rounds = range(-WARM, entry.case.rounds)
            rarely = {-1, *(number for number in rounds if number % SLOW_EVERY == 0)}
            entry.numbers = rarely if entry.contender.slow else set(rounds)

    def seconds(self, step: Callable[[], object], times: int, plugged: bool) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            step()
        return (time.perf_counter() - begin) / times

    def finish(self, entry: Entry) -> None:
        pass

    def release(self) -> None:
        pass


def device_name() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def available_memory() -> float:
    try:
        with open("/proc/meminfo") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 8e9
