"""Programs of several processes that torch.distributed connects with gloo. Each writes a file with the result of each run."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

Result = dict[str, Any]
SECONDS = 300


def results_of(program: str, world: int, names: Mapping[str, Any], folder: Path) -> dict[str, list[Result]]:
    """The results of every run, by rank. All runs share the processes: starting them takes most of the time."""
    path = [str(Path(program).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # independent of host name and network
    # Files, not pipes: a pipe that nobody reads yet fills up, and all would wait for its writer.
    logs = [folder / f"{rank}.log" for rank in range(world)]
    programs = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, program, str(rank), str(folder)]
            programs.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
    try:
        for each in programs:
            each.wait(timeout=SECONDS)
    finally:
        for each in programs:
            each.kill()
    if [each.returncode for each in programs] != [0] * world:
        # Of the first run that went wrong on some rank: the others waited for it.
        errors = (
            [error for rank in range(world) if (error := _error_in(folder / f"{name}.{rank}.pt"))] for name in names
        )
        raise AssertionError("\n".join([*next(filter(None, errors), []), *(log.read_text()[-1000:] for log in logs)]))
    return {
        name: [torch.load(folder / f"{name}.{rank}.pt", weights_only=False) for rank in range(world)] for name in names
    }


def _error_in(file: Path) -> str:
    found: Result = torch.load(file, weights_only=False) if file.is_file() else {}
    error: str = found.get("error", "")
    return f"{file.name}: {error[-1500:]}" if error else ""


def of_run(results: dict[str, list[Result]], name: str) -> list[Result]:
    for result in results[name]:
        assert "error" not in result, result["error"]
    return results[name]


def run_all(runs: Mapping[str, Callable[[], Result]], world: int, threads: int) -> None:
    """The program of one process: `PROGRAM RANK FOLDER`."""
    import torch.distributed as dist

    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    # A process whose peer has failed must not wait for long.
    limit = datetime.timedelta(seconds=30)
    dist.init_process_group("gloo", f"file://{folder / 'meeting'}", rank=rank, world_size=world, timeout=limit)
    *_, last = runs
    for name, run in runs.items():
        begin = time.perf_counter()
        torch.save(_result_of(run), folder / f"{name}.{rank}.pt")
        print(f"{name}: {time.perf_counter() - begin:.2f} s", flush=True)
        if name != last:  # which may leave the group broken
            dist.barrier()
    # All is saved. At interpreter exit torch 2.13 sometimes aborts, because of its own thread that is still running
    # ("terminate called without an active exception", on busy cores with three threads).
    sys.stdout.flush()
    os._exit(0)


def _result_of(run: Callable[[], Result]) -> Result:
    try:
        return run()
    except Exception:
        return {"error": traceback.format_exc()}
