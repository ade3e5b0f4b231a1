"""Makes the tensors of a case, checks every contender, and times them in interleaved rounds."""

from __future__ import annotations

import gc
import random
import time
from dataclasses import dataclass, field
from functools import partial
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from gpu_cases import Case, Contender
from shapes import Shape
from tangent import off_rows

# So small that the gradient of a "tangent" case stays orthogonal to the parameters over all rounds.
LR = 1e-8
# Random gradients are another window of one long random buffer at every round: this many elements further.
WINDOW, WINDOWS = 1024, 8
# Every tensor starts on a cache line, as torch's allocator would have it.
LINE = 64


@dataclass(frozen=True)
class Effort:
    """budget: seconds for the rounds of one contender in one case. sample: the least time to take between two events."""

    budget: float = 0.7
    sample: float = 4e-3
    rounds: int = 25
    host_samples: int = 15
    warm: float = 0.4


QUICK = Effort(budget=0.02, sample=1e-4, rounds=5, host_samples=3, warm=0.01)


# ------------------------------------------------------------------ tensors


class Flat:
    """Tensors of some shapes, one after the other in one buffer, which can be read from any later place on."""

    def __init__(self, shapes: tuple[Shape, ...], device: torch.device, more: int = 0):
        self.shapes, self.starts, total = shapes, [], 0
        for shape in shapes:
            self.starts.append(total)
            total += -(-torch.Size(shape).numel() // LINE) * LINE
        self.buffer = torch.empty(total + more, device=device)

    def tensors(self, buffer: Tensor, shift: int = 0) -> list[Tensor]:
        return [
            buffer[shift + start : shift + start + torch.Size(shape).numel()].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


class Model:
    """Parameters and gradients of a case, one copy for each dtype: every contender steps the same ones in turn."""

    def __init__(self, case: Case, device: torch.device, seed: int = 0):
        dtypes = {case.dtype_of(contender): None for contender in case.contenders}
        generator = torch.Generator(device).manual_seed(seed)
        windows = WINDOWS if case.gradients == "random" else 1
        weights = Flat(case.shapes, device)
        weights.buffer.normal_(0, 0.02, generator=generator)
        slopes = Flat(case.shapes, device, more=(windows - 1) * WINDOW)
        slopes.buffer.normal_(0, 1e-3, generator=generator)
        if case.gradients == "tangent":
            for p, g in zip(weights.tensors(weights.buffer), slopes.tensors(slopes.buffer), strict=True):
                g.copy_(off_rows(g, p))
        self.parameters = {dtype: weights.tensors(weights.buffer.to(dtype)) for dtype in dtypes}
        self.gradients = {
            dtype: [slopes.tensors(buffer, shift * WINDOW) for shift in range(windows)]
            for dtype in dtypes
            for buffer in [slopes.buffer.to(dtype)]
        }

    def give(self, dtype: torch.dtype, number: int) -> None:
        gradients = self.gradients[dtype]
        for p, g in zip(self.parameters[dtype], gradients[number % len(gradients)], strict=True):
            p.grad = g


class SharedMoments:
    """One set of moments for all contenders, so that all their states fit into memory together."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype, int], Tensor] = {}

    def share(self, optimizer: torch.optim.Optimizer, params: list[Tensor]) -> None:
        """Puts the shared moments in place of those that a first step has made."""
        for i, p in enumerate(params):
            own = optimizer.state.get(p, {})
            for key, value in own.items():
                if isinstance(value, Tensor) and value.shape == p.shape and key != "step":
                    slot = key.replace("momentum_buffer", "momentum")
                    own[key] = self.kept.setdefault((slot, value.dtype, i), value)


# ------------------------------------------------------------------ the gate before timing

CHECKED: tuple[Shape, ...] = ((33, 65), (7, 5, 3, 3), (129,), (1, 40), (2, 12_000), (64,))


def check(contender: Contender, dtype: torch.dtype, kind: str, place: Any, steps: int = 3, lr: float = 1e-2) -> float:
    """Takes a few steps on small tensors beside onepass's reference on the CPU; the largest difference, in tolerances.

    Raises RuntimeError if that is above 1: what computes something else is not worth timing.
    """
    case = Case("check", "", CHECKED, (contender,), dtype, kind)
    model = Model(case, torch.device("cpu"), seed=2)
    truth = model.parameters[dtype]
    found = [p.to(place.device, copy=True) for p in truth]
    pair = (contender.make(found, lr, place.backend(contender.backend)), contender.make_twin(truth, lr))
    for number in range(steps):
        model.give(dtype, number)
        for p, q in zip(found, truth, strict=True):
            p.grad = q.grad.to(place.device)
        for optimizer in pair:
            optimizer.step()
    # 16-bit: two units in the last place; float32: what a sum in another order may make of lr's step. Moments that are
    # rounded to 16 bits change a step by some hundredths of lr.
    relative, absolute = (2**-7, 0.0) if dtype == torch.bfloat16 else (1e-5, 1e-6)
    if contender.loose:
        absolute = 0.3 * lr * steps
    worst = 0.0
    for p, q in zip(found, truth, strict=True):
        want = q.double()
        difference = (p.cpu().double() - want).abs() / (relative * want.abs() + absolute)
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf).max()))
    if not worst <= 1:
        raise RuntimeError(
            f"{contender.name} is {worst:.3g} tolerances from the reference ({kind} gradients); not timed"
        )
    return worst


# ------------------------------------------------------------------ timing


@dataclass
class Timing:
    """Seconds of a step.

    device: by the device's clock, one for each round; where the case is bound by launches, waiting for the host counts.
    host: until `step` returns. graph: of a replay of the captured step.
    corrected: share of the parameters that were corrected after a wrong prediction; None without a gate.
    failed: why there are no times.
    """

    contender: Contender
    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    graph: list[float] = field(default_factory=list)
    repeat: int = 1
    corrected: float | None = None
    failed: str = ""

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, middle, high = quantiles(self.device, n=4) if len(self.device) > 1 else 3 * self.device
        return low, middle, high

    @property
    def host_median(self) -> float | None:
        return median(self.host) if self.host else None

    @property
    def graph_median(self) -> float | None:
        return median(self.graph) if self.graph else None


class Entry:
    """A contender in a case: its optimizer, and how often it is to step."""

    def __init__(self, case: Case, contender: Contender, model: Model, moments: SharedMoments, place: Any):
        self.case, self.contender, self.model, self.moments, self.place = case, contender, model, moments, place
        self.timing = Timing(contender)
        self.rounds = 0
        self.optimizer = self.make()

    def make(self, **options: Any) -> torch.optim.Optimizer:
        """An optimizer that has stepped, on the shared moments."""
        self.give(0)
        params = self.model.parameters[self.case.dtype_of(self.contender)]
        backend = self.place.backend(self.contender.backend)
        optimizer = self.contender.make(params, LR, backend, **options)
        optimizer.step()
        self.moments.share(optimizer, params)
        optimizer.step()
        return optimizer

    def give(self, number: int) -> None:
        self.model.give(self.case.dtype_of(self.contender), number)

    def plan(self, effort: Effort) -> None:
        """Settles how many steps a sample has, and how many samples there are."""
        took = self.sample(1)
        self.timing.repeat = max(1, min(100, round(effort.sample / max(took, 1e-7))))
        took = self.sample(self.timing.repeat)
        self.rounds = max(3, min(effort.rounds, int(effort.budget / max(took * self.timing.repeat, 1e-9))))

    def sample(self, times: int) -> float:
        return self.place.seconds(self.optimizer.step, times, plugged=not self.case.launch_bound)

    def time_device(self, number: int) -> None:
        self.give(number)
        self.timing.device.append(self.sample(self.timing.repeat))

    def time_host(self, samples: int) -> None:
        for _ in range(samples):
            self.place.synchronize()  # a queue that is full would hold the host up
            begin = time.perf_counter()
            self.optimizer.step()
            self.timing.host.append(time.perf_counter() - begin)
            if sum(self.timing.host) > 1:
                break
        self.place.synchronize()

    def time_graph(self, effort: Effort) -> None:
        optimizer = self.make(capturable=True)
        graph = self.place.graph_of(optimizer.step)
        graph.replay()
        times = max(10, min(200, round(effort.sample / max(self.timing.quartiles[1], 1e-7))))
        for _ in range(7):
            self.timing.graph.append(self.place.seconds(graph.replay, times, plugged=True))
        self.place.synchronize()
        graph.reset()

    def look(self) -> None:
        verdicts = self.optimizer.last_step() if hasattr(self.optimizer, "last_step") else {}
        if verdicts:
            corrected = sum(p.numel() for p, verdict in verdicts.items() if verdict.corrected)
            self.timing.corrected = corrected / self.case.numel


def time_case(case: Case, place: Any, effort: Effort, seed: int = 0) -> list[Timing]:
    """Times all contenders of a case, and frees what it took."""
    timings = time_contenders(case, place, effort, seed)
    gc.collect()
    place.release()
    return timings


def time_contenders(case: Case, place: Any, effort: Effort, seed: int) -> list[Timing]:
    model, moments = Model(case, place.device, seed), SharedMoments()
    entries, failures = [], {}
    for contender in case.contenders:
        entry, failed = attempt(partial(Entry, case, contender, model, moments, place))
        if entry is None:
            failures[contender.name] = Timing(contender, failed=failed)
        else:
            entries.append(entry)
    warm_up(entries, effort)
    for entry in entries:
        _, entry.timing.failed = attempt(partial(entry.plan, effort))
    timed = [entry for entry in entries if not entry.timing.failed]
    time_rounds(timed, seed)
    for entry in timed:
        entry.give(0)
        entry.look()
        entry.time_host(effort.host_samples)
        if entry.contender.graph:
            _, failed = attempt(partial(entry.time_graph, effort))
            if failed:
                print(f"{case.name}: {entry.contender.name}: no captured step: {failed}", flush=True)
    found = failures | {entry.contender.name: entry.timing for entry in entries}
    return [found[contender.name] for contender in case.contenders]


def time_rounds(entries: list[Entry], seed: int) -> None:
    """In every round another order, so that a busy moment falls on all alike. Fewer rounds are spread over all."""
    order, most = random.Random(seed), max((entry.rounds for entry in entries), default=0)
    for number in range(most):
        for entry in order.sample(entries, len(entries)):
            if (number + 1) * entry.rounds // most > number * entry.rounds // most:
                entry.time_device(number)


def warm_up(entries: list[Entry], effort: Effort) -> None:
    """Clocks rise with work, and fall without."""
    begin = time.perf_counter()
    while entries and time.perf_counter() - begin < effort.warm:
        entries[0].sample(10)


def attempt(what: Any) -> tuple[Any, str]:
    """What `what` returns, or in one line why it did not."""
    try:
        return what(), ""
    except (RuntimeError, ValueError) as error:  # torch's error when memory runs out is one
        return None, (str(error).splitlines() or [type(error).__name__])[0][:200]


def copy_bandwidth(place: Any, numel: int, rounds: int = 20) -> tuple[float, float]:
    """Best and median bytes per second of a large copy on the device, bytes read and bytes written together."""
    source = torch.randn(numel, device=place.device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    for _ in range(10):
        copy()
    seconds = [place.seconds(copy, 2, plugged=True) for _ in range(rounds)]
    return 2 * source.nbytes / min(seconds), 2 * source.nbytes / median(seconds)
