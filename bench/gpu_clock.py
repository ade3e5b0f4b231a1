"""Time on a GPU, by its own events; host time, and replays of captured steps."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

import onepass
from cases import Case, Contender
from harness import Entry, attempt
from results_file import Row, commit

Step = Callable[[], object]

# Keeps the device busy while the host fills its queue, so that the time to the first launch is not in a step that is
# bound by memory. About a millisecond.
PLUG_CYCLES = 2_000_000


@dataclass(frozen=True)
class Effort:
    """budget: seconds for the rounds of one contender in one case. sample: the least time to take between two events."""

    budget: float = 0.7
    sample: float = 4e-3
    rounds: int = 25
    host_samples: int = 15
    warm: float = 0.4


FULL, QUICK = Effort(), Effort(budget=0.02, sample=1e-4, rounds=5, host_samples=3, warm=0.01)


class DeviceClock:
    """Common part of the GPU's clock and its rehearsal: the number of rounds, host time, and replays."""

    shares = True
    looks = False
    effort: Effort
    seconds: Callable[..., float]
    synchronize: Callable[[], None]
    graph_of: Callable[[Step], Any]

    def batches(self, case: Case) -> list[list[Contender]]:
        return [[*case.contenders]]

    def plan(self, entries: list[Entry]) -> None:
        begin = time.perf_counter()  # clocks rise with work, and fall without
        while entries and time.perf_counter() - begin < self.effort.warm:
            entries[0].sample(10)
        rounds = {}
        for entry in entries:
            rounds[entry], entry.timing.failed = attempt(partial(self.rounds_of, entry))
        most = max((count for count in rounds.values() if count), default=0)
        for entry, count in rounds.items():
            # Fewer rounds are spread over all.
            if count:
                entry.numbers = {n for n in range(most) if (n + 1) * count // most > n * count // most}

    def rounds_of(self, entry: Entry) -> int:
        """Settles how many steps a sample has; returns how many samples there are."""
        effort = self.effort
        took = entry.sample(1)
        entry.timing.repeat = max(1, min(100, round(effort.sample / max(took, 1e-7))))
        took = entry.sample(entry.timing.repeat)
        return max(3, min(effort.rounds, int(effort.budget / max(took * entry.timing.repeat, 1e-9))))

    def finish(self, entry: Entry) -> None:
        entry.give(0)
        entry.look()
        self.time_host(entry)
        if entry.contender.graph:
            _, failed = attempt(partial(self.time_graph, entry))
            if failed:
                print(f"{entry.case.name}: {entry.contender.name}: no captured step: {failed}", flush=True)

    def time_host(self, entry: Entry) -> None:
        for _ in range(self.effort.host_samples):
            self.synchronize()  # a queue that is full would hold the host up
            begin = time.perf_counter()
            entry.step()
            entry.timing.host.append(time.perf_counter() - begin)
            if sum(entry.timing.host) > 1:
                break
        self.synchronize()

    def time_graph(self, entry: Entry) -> None:
        optimizer = entry.make(capturable=True)
        graph = self.graph_of(optimizer.step)
        graph.replay()
        times = max(10, min(200, round(self.effort.sample / max(entry.timing.quartiles[1], 1e-7))))
        for _ in range(7):
            entry.timing.graph.append(self.seconds(graph.replay, times, plugged=True))
        self.synchronize()
        graph.reset()

    def copy_bandwidth(self, numel: int, rounds: int = 20) -> tuple[float, float]:
        """Best and median bytes per second of a large copy on the device, bytes read and bytes written together."""
        source = torch.randn(numel, device=self.device)
        target = torch.empty_like(source)
        copy = partial(target.copy_, source)
        for _ in range(10):
            copy()
        seconds = [self.seconds(copy, 2, plugged=True) for _ in range(rounds)]
        return 2 * source.nbytes / min(seconds), 2 * source.nbytes / median(seconds)


class Gpu(DeviceClock):
    """The GPU that torch has chosen."""

    device = torch.device("cuda")

    def __init__(self, effort: Effort = FULL) -> None:
        self.effort = effort
        self.properties = torch.cuda.get_device_properties(self.device)
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    @staticmethod
    def missing() -> str | None:
        """Why nothing can be timed here, or None."""
        if not torch.cuda.is_available():
            return f"bench/gpu.py needs an NVIDIA GPU, and torch {torch.__version__} finds none; bench/run.py times the CPU."
        reason = onepass.backends()["cuda"]
        return None if reason is None else f"bench/gpu.py times the CUDA backend, which cannot be used: {reason}"

    def backend(self, name: str) -> str:
        return name

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, step: Step, times: int, plugged: bool) -> float:
        """Of one step, `times` of them taken in a row. Not plugged, waiting for the host counts."""
        if plugged:
            torch.cuda._sleep(PLUG_CYCLES)
        self.start.record()
        for _ in range(times):
            step()
        self.end.record()
        self.end.synchronize()
        return self.start.elapsed_time(self.end) * 1e-3 / times

    def graph_of(self, step: Step) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return graph

    def release(self) -> None:
        """Gives memory that nobody holds any more back."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    @property
    def cache_bytes(self) -> int:
        return int(getattr(self.properties, "L2_cache_size", 0))

    def about(self) -> Row:
        return {
            "device": self.properties.name,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "torch": torch.__version__,
            "onepass": onepass.__version__,
            "archs": onepass.backend.compiled._C.cuda_archs,
            "commit": commit(),
        }


def driver_version() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = re.search(r"[\d.]+", subprocess.run(command, capture_output=True, text=True).stdout)
    return found[0] if found else ""
