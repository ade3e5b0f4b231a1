"""How time is taken: on a GPU with its own events; in a rehearsal on the CPU, with nothing worth quoting."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable

import torch

import onepass
from gpu_cases import BACKENDS
from results_file import Row, commit

Step = Callable[[], object]

# Keeps the device busy while the host fills its queue, so that the time to the first launch is not in a step that is
# bound by memory. About a millisecond.
PLUG_CYCLES = 2_000_000


class Gpu:
    """The GPU that torch has chosen."""

    device = torch.device("cuda")

    def __init__(self) -> None:
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


class Rehearsal:
    """The same calls on the CPU: shows that the bench runs, not how fast anything is.

    stand_in: the backend that is stepped in place of "cuda".
    """

    device = torch.device("cpu")
    cache_bytes = 0

    def __init__(self, stand_in: str = "cpu"):
        self.stand_in = stand_in

    class Graph:
        def __init__(self, step: Step):
            self.replay = step

        def reset(self) -> None:
            pass

    def backend(self, name: str) -> str:
        return self.stand_in if name in BACKENDS else name

    def synchronize(self) -> None:
        pass

    def seconds(self, step: Step, times: int, plugged: bool) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            step()
        return (time.perf_counter() - begin) / times

    def graph_of(self, step: Step) -> Graph:
        return self.Graph(step)

    def release(self) -> None:
        pass

    def about(self) -> Row:
        return {
            "device": "rehearsal",
            "torch": torch.__version__,
            "onepass": onepass.__version__,
            "commit": commit(),
        }


def driver_version() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    found = re.search(r"[\d.]+", subprocess.run(command, capture_output=True, text=True).stdout)
    return found[0] if found else ""
