"""Runs the demo's trainings, which do not depend on one another, each in one thread and as many at once as fit."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from demo_data import Digits, digits


@dataclass(frozen=True)
class Job:
    """One training: `call(data)` returns its record, which is filed under `key`."""

    key: tuple[Any, ...]
    call: Callable[[Digits], Any]


def run_jobs(jobs: list[Job], device: torch.device) -> Iterator[tuple[Job, Any]]:
    """Yields every job with its result, in the order in which they end."""
    if device.type == "cuda":
        for job in jobs:
            yield job, job.call(digits(device))
        return
    # These nets are so small that two processes of one thread do twice the work of one process of two threads, and
    # two threads wait for each other whenever the machine has something else to do.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cores(), len(jobs), 8), mp_context=spawn, initializer=one_thread) as pool:
        pending = {pool.submit(partial(work, job.call)): job for job in jobs}
        for done in as_completed(pending):
            yield pending[done], done.result()


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_thread() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="onepass: stepping with the slow reference")


def work(call: Callable[[Digits], Any]) -> Any:
    return call(data_of_worker())


@cache
def data_of_worker() -> Digits:
    return digits(torch.device("cpu"))
