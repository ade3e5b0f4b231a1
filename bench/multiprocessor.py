"""A model of one multiprocessor, event by event: warps that load, compute and store in turn, four schedulers that they
share, and a memory without limits but with a latency.

Instructions are counted in the machine code; how long a warp takes for one when it is alone is an estimate.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

SCHEDULERS = 4
WARPS_OF_BLOCK = 4
LEAST = 1e-6  # ns: what is left to do after less is rounding


@dataclass(frozen=True)
class Work:
    """Computation of a warp: issue slots of its scheduler, and cycles it takes when it is alone."""

    slots: float
    alone: float

    def __add__(self, other: Work) -> Work:
        return Work(self.slots + other.slots, self.alone + other.alone)

    def times(self, factor: float) -> Work:
        return Work(factor * self.slots, factor * self.alone)


@dataclass(frozen=True)
class Item:
    """Part of each warp of a block in one item: `passes` times some rounds and the end of a row."""

    passes: int
    rounds: float  # of a pass; the last may be a part of one
    round: Work
    row: Work | None = None  # its end, and the write of what was kept
    row_meets: int = 0  # how often the warps of the block meet there
    bytes: float = 0.0  # that a warp moves in a pass
    warps: int = WARPS_OF_BLOCK
    ends_together: bool = False  # no warp begins the next item before all have ended this one


@dataclass(frozen=True)
class Costs:
    """In nanoseconds, but for ghz."""

    ghz: float
    latency: float  # from a load to its value
    opening: float  # from the end of an item to the first load of the next: records, from the second-level cache
    publishing: float  # statistics of one item, by one warp
    meeting: float  # a barrier of a block
    items_of_publication: int = 4


class Scheduler:
    """Shares one issue slot a cycle among the warps that compute; none is faster than alone."""

    def __init__(self, ghz: float) -> None:
        self.ghz = ghz
        self.jobs: dict[int, list[float]] = {}  # warp: part left, rate alone, slots
        self.at = 0.0
        self.version = 0

    def slowdown(self) -> float:
        return max(1.0, sum(rate * slots for _, rate, slots in self.jobs.values()) / self.ghz)

    def advance(self, now: float) -> list[int]:
        """The warps that are done by now."""
        passed = (now - self.at) / self.slowdown()
        for job in self.jobs.values():
            job[0] -= passed * job[1]
        self.at = now
        done = [warp for warp, (left, rate, _) in self.jobs.items() if left / rate <= LEAST]
        for warp in done:
            del self.jobs[warp]
        return done

    def add(self, warp: int, work: Work) -> None:
        self.jobs[warp] = [1.0, self.ghz / max(work.alone, work.slots), work.slots]

    def next_end(self) -> float:
        return self.at + self.slowdown() * min(left / rate for left, rate, _ in self.jobs.values())


Step = tuple[str, object]


def life_of(item: Item, costs: Costs, publishes: bool) -> Iterator[Step]:
    """Steps of a warp, item after item: ("wait", ns), ("compute", work), ("meet", None), ("moved", bytes)."""
    count = 0
    while True:
        yield "wait", costs.opening
        for _ in range(item.passes):
            left = item.rounds
            while left > 0:
                part = min(1.0, left)
                yield "wait", costs.latency
                yield "compute", item.round.times(part)
                left -= part
            for _ in range(item.row_meets):
                yield "meet", None
            if item.row is not None:
                yield "compute", item.row
            yield "moved", item.bytes
        if item.ends_together:
            yield "meet", None
        count += 1
        if publishes and count % costs.items_of_publication == 0:
            yield "meet", None
            yield "wait", costs.publishing + costs.meeting


def simulate(item: Item, costs: Costs, blocks: int, publishes: bool, until: float = 400_000.0) -> float:
    """Bytes per ns that the warps of so many blocks would move."""
    events: list[tuple[float, int, str, int, int]] = []  # when, number, what, warp or scheduler, version
    schedulers = [Scheduler(costs.ghz) for _ in range(SCHEDULERS)]
    lives = [life_of(item, costs, publishes) for _ in range(blocks * item.warps)]
    waiting: list[list[int]] = [[] for _ in range(blocks)]
    moved = 0.0
    number = 0

    def push(at: float, what: str, who: int, version: int = 0) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (at, number, what, who, version))

    def plan_end(scheduler: int) -> None:
        s = schedulers[scheduler]
        s.version += 1
        if s.jobs:
            push(s.next_end(), "end", scheduler, s.version)

    def go_on(warp: int, now: float) -> None:
        nonlocal moved
        for what, how_much in lives[warp]:
            if what == "moved":
                assert isinstance(how_much, float)
                moved += how_much if now >= until / 4 else 0
                continue
            if what == "wait":
                assert isinstance(how_much, float)
                push(now + how_much, "go", warp)
            elif what == "compute":
                assert isinstance(how_much, Work)
                scheduler = warp % SCHEDULERS
                for other in schedulers[scheduler].advance(now):
                    push(now, "go", other)
                schedulers[scheduler].add(warp, how_much)
                plan_end(scheduler)
            else:
                block = warp // item.warps
                waiting[block].append(warp)
                if len(waiting[block]) == item.warps:
                    for other in waiting[block]:
                        push(now + costs.meeting, "go", other)
                    waiting[block] = []
            return

    for warp in range(len(lives)):
        push(97.0 * warp, "go", warp)
    while events:
        now, _, what, who, version = heapq.heappop(events)
        if now > until:
            break
        if what == "go":
            go_on(who, now)
        elif version == schedulers[who].version:
            for warp in schedulers[who].advance(now):
                push(now, "go", warp)
            plan_end(who)
    return moved / (until - until / 4)
