"""Times contenders in interleaved rounds, by one of the clocks."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import Any, Protocol

import torch

from cases import Case, Contender
from inputs import Model
from results_file import Row

# So small that the gradient of a "tangent" case stays orthogonal to the parameters over all rounds.
LR = 1e-8
# torch's clipping multiplies the gradients, which the contenders share, by 1 then.
NO_LIMIT = 1e9


class Clock(Protocol):
    """A device, how its time is taken, and what is timed when.

    shares: all contenders step the same parameters and moments, so that they fit into the device's memory together.
    looks: what the gates did is read after every round, where reading it does not wait for a device.
    cache_bytes: of the last cache, where it matters; 0 where not.
    """

    device: torch.device
    shares: bool
    looks: bool

    @property
    def cache_bytes(self) -> int: ...

    def about(self) -> Row:
        """Device, versions and options of the measurement."""

    def backend(self, name: str) -> str:
        """The backend that is stepped for the one a contender names."""

    def batches(self, case: Case) -> list[list[Contender]]:
        """Contenders that are timed together, each batch led by the baseline."""

    def plan(self, entries: list[Entry]) -> None:
        """Warms up, and settles which rounds each takes part in, and how many steps it then takes."""

    def seconds(self, step: Callable[[], object], times: int, plugged: bool) -> float:
        """Of one step, `times` of them taken in a row. plugged: without what a device waits for the host."""

    def finish(self, entry: Entry) -> None:
        """Takes further measurements after all rounds."""

    def release(self) -> None:
        """Gives memory that nobody holds any more back."""


@dataclass
class Timing:
    """Seconds of a contender's steps by (batch, round), each the mean of `repeat` steps, and what else was measured.

    host: until `step` returns. graph: of a replay of the captured step.
    corrected: shares of the parameters that were corrected after a wrong prediction; empty without a gate.
    failed: why there are no times.
    """

    contender: Contender
    seconds: dict[tuple[int, int], float] = field(default_factory=dict)
    host: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)
    corrected: list[float] = field(default_factory=list)
    repeat: int = 1
    failed: str = ""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        known = [*self.seconds.values()]
        low, middle, high = quantiles(known, n=4) if len(known) > 1 else 3 * known
        return low, middle, high


class Entry:
    """A contender in a batch of a case: its optimizer, and when it is to step."""

    def __init__(self, timing: Timing, model: Model, clock: Clock, batch: int):
        self.timing, self.contender, self.batch = timing, timing.contender, batch
        self.model, self.case, self.clock = model, model.case, clock
        dtype = self.case.dtype_of(self.contender)
        self.params = model.parameters[dtype] if clock.shares else model.copies(dtype)
        # Rounds it takes part in. Those below 0 warm up and are not counted.
        self.numbers: Collection[int] = ()
        self.optimizer = self.make()
        self.step = self.contender.step_of(self.optimizer, self.params, NO_LIMIT)

    def make(self, **options: Any) -> Any:
        """An optimizer; one that shares its moments has stepped."""
        optimizer = self.contender.make(self.params, LR, self.clock.backend(self.contender.backend), **options)
        if self.clock.shares:
            self.give(0)
            optimizer.step()
            self.model.share_moments(optimizer, self.params)
            optimizer.step()
        return optimizer

    def give(self, number: int) -> None:
        self.model.give(self.params, number)

    def sample(self, times: int) -> float:
        return self.clock.seconds(self.step, times, plugged=not self.case.launch_bound)

    def take(self, number: int) -> None:
        self.give(number)
        seconds = self.sample(self.timing.repeat)
        if number >= 0:
            self.timing.seconds[self.batch, number] = seconds
            if self.clock.looks:
                self.look()

    def look(self) -> None:
        verdicts = self.optimizer.last_step() if hasattr(self.optimizer, "last_step") else {}
        if verdicts:
            corrected = sum(p.numel() for p, verdict in verdicts.items() if verdict.corrected)
            self.timing.corrected.append(corrected / self.case.numel)


def time_case(case: Case, clock: Clock, seed: int = 0) -> dict[str, Timing]:
    """Times all contenders of a case, and frees what it took."""
    timings = {contender.name: Timing(contender) for contender in case.contenders}
    time_batches(case, timings, clock, seed)
    gc.collect()
    clock.release()
    return timings


def time_batches(case: Case, timings: dict[str, Timing], clock: Clock, seed: int) -> None:
    model = Model(case, clock.device, seed)
    for batch, contenders in enumerate(clock.batches(case)):
        time_batch([timings[contender.name] for contender in contenders], model, clock, batch, seed)
        gc.collect()


def time_batch(timings: list[Timing], model: Model, clock: Clock, batch: int, seed: int) -> None:
    entries = []
    for timing in timings:
        entry, timing.failed = attempt(partial(Entry, timing, model, clock, batch))
        entries += [entry] if entry else []
    clock.plan(entries)
    timed = [entry for entry in entries if not entry.timing.failed]
    time_rounds(timed, seed)
    for entry in timed:
        clock.finish(entry)


def time_rounds(entries: list[Entry], seed: int) -> None:
    """In every round another order, so that a busy moment falls on all alike."""
    order = random.Random(seed)
    for number in sorted({number for entry in entries for number in entry.numbers}):
        for entry in order.sample(entries, len(entries)):
            if number in entry.numbers:
                entry.take(number)


def attempt(what: Callable[[], Any]) -> tuple[Any, str]:
    """What `what` returns, or in one line why it did not."""
    try:
        return what(), ""
    except (RuntimeError, ValueError) as error:  # torch's error when memory runs out is one
        return None, (str(error).splitlines() or [type(error).__name__])[0][:200]


def ratio(timings: dict[str, Timing], name: str, against: str) -> float:
    """Median over the rounds that both took part in of one's time over the other's.

    Two that never met in a round are compared through the baseline, which is in every batch.
    """
    one, other = timings[name].seconds, timings[against].seconds
    met = one.keys() & other.keys()
    if met:
        return median(one[key] / other[key] for key in met)
    baseline = next(iter(timings))
    return ratio(timings, name, baseline) / ratio(timings, against, baseline)
