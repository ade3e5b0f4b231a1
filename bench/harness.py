"""Makes the tensors of a case, checks every contender, and times them in interleaved rounds."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch import Tensor

from cases import Case, Contender, Target
from shapes import Shape
from tangent import off_rows

# So small that the gradient of a "tangent" case stays orthogonal to the parameters over all rounds.
LR = 1e-7
WARM = 3
# torch's clipping multiplies the gradients, which the contenders share, by 1 then.
NO_LIMIT = 1e9
SLOW_EVERY = 7
# Fresh random gradients are another window of one long random buffer: this many elements further at each round.
WINDOW = 1024


# ------------------------------------------------------------------ tensors


def parameters(shapes: tuple[Shape, ...], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.empty(shape).normal_(0, 0.02, generator=generator) for shape in shapes]


class Gradients:
    """The gradients of a case, shared by its contenders: no optimizer writes to them."""

    def __init__(self, kind: str, params: list[Tensor], dtypes: set[torch.dtype], seed: int):
        self.shapes = [p.shape for p in params]
        self.kind = kind
        generator = torch.Generator().manual_seed(seed + 1)
        if kind == "tangent":
            fixed = [off_rows(torch.empty(p.shape).normal_(0, 1e-3, generator=generator), p) for p in params]
            self.fixed = {dtype: [g.to(dtype) for g in fixed] for dtype in dtypes}
        else:
            # Every tensor starts on a cache line, as an allocator would have it.
            self.starts, total = [], 0
            for p in params:
                self.starts.append(total)
                total += -(-p.numel() // 32) * 32
            buffer = torch.empty(total + 64 * WINDOW).normal_(0, 1e-3, generator=generator)
            self.buffers = {dtype: buffer.to(dtype) for dtype in dtypes}

    def of_round(self, dtype: torch.dtype, number: int) -> list[Tensor]:
        if self.kind == "tangent":
            return self.fixed[dtype]
        shift = number % 64 * WINDOW
        return [
            self.buffers[dtype][shift + start : shift + start + shape.numel()].view(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


def copies(params: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [p.to(dtype, copy=True).requires_grad_() for p in params]


def give(params: list[Tensor], gradients: list[Tensor]) -> None:
    for p, g in zip(params, gradients, strict=True):
        p.grad = g


# ------------------------------------------------------------------ the gate before timing


def check(case: Case, contender: Contender, steps: int = 3, lr: float = 1e-2) -> float:
    """Runs a few steps on small tensors beside onepass's reference; returns the largest difference, in tolerances.

    Raises RuntimeError if that is above 1: what computes something else is not worth timing.
    """
    shapes = tuple(dict.fromkeys(tuple(min(size, 33) for size in shape) for shape in case.shapes))[:8]
    start = parameters(shapes, seed=2)
    gradients = Gradients(case.gradients, start, {contender.dtype}, seed=2)
    ours, truth = copies(start, contender.dtype), copies(start, contender.dtype)
    pair = ((ours, contender.make(ours, lr)), (truth, contender.make_twin(truth, lr)))
    for number in range(steps):
        for params, optimizer in pair:
            given = [g.clone() for g in gradients.of_round(contender.dtype, number)]
            give(params, given)
            contender.step(optimizer, params, max_norm=0.5 * float(torch.cat([g.flatten() for g in given]).norm()))
    # 16-bit: two units in the last place; float32: what a sum in another order may make of lr's step.
    relative, absolute = (2**-7, 0.0) if contender.dtype == torch.bfloat16 else (1e-5, 1e-6)
    worst = 0.0
    for a, b in zip(ours, truth, strict=True):
        difference = (a.detach().double() - b.detach().double()).abs() / (
            relative * b.detach().double().abs() + absolute
        )
        worst = max(worst, float(difference.nan_to_num(nan=torch.inf).max()))
    if worst > 1:
        raise RuntimeError(f"{case.name}: {contender.name} is {worst:.3g} tolerances from the reference; not timed")
    return worst


# ------------------------------------------------------------------ timing


@dataclass(frozen=True)
class Timing:
    """Seconds of a contender's steps by (batch, round), and what its gates did in the last round.

    corrected: share of the parameters that were corrected after a wrong prediction; None without a gate.
    """

    contender: Contender
    seconds: dict[tuple[int, int], float]
    corrected: float | None

    @property
    def quartiles(self) -> tuple[float, float, float]:
        low, middle, high = (
            quantiles(self.seconds.values(), n=4) if len(self.seconds) > 1 else 3 * [*self.seconds.values()]
        )
        return low, middle, high


def time_case(case: Case, seed: int, tick: Callable[[], None]) -> dict[str, Timing]:
    """Times all contenders, as many at once as memory allows, the baseline in every batch."""
    start = parameters(case.shapes, seed)
    gradients = Gradients(case.gradients, start, {c.dtype for c in case.contenders}, seed)
    timings: dict[str, Timing] = {}
    for batch, contenders in enumerate(batches(case)):
        for timing in time_batch(case, contenders, batch, start, gradients, tick):
            known = timings.get(timing.contender.name)
            seconds = {**known.seconds, **timing.seconds} if known else timing.seconds
            timings[timing.contender.name] = Timing(timing.contender, seconds, timing.corrected)
        gc.collect()
    return timings


def time_batch(
    case: Case,
    contenders: list[Contender],
    batch: int,
    start: list[Tensor],
    gradients: Gradients,
    tick: Callable[[], None],
) -> list[Timing]:
    """Every round each contender steps in its turn, in another order each time, so that a busy moment falls on all alike."""
    params = {c.name: copies(start, c.dtype) for c in contenders}
    optimizers = {c.name: c.make(params[c.name], LR) for c in contenders}
    seconds: dict[str, dict[tuple[int, int], float]] = {c.name: {} for c in contenders}
    corrected: dict[str, list[float]] = {c.name: [] for c in contenders}
    order = random.Random(0)
    for number in range(-WARM, case.rounds):
        for contender in order.sample(contenders, len(contenders)):
            if contender.slow and number % SLOW_EVERY and number != -1:
                continue
            name = contender.name
            give(params[name], gradients.of_round(contender.dtype, number))
            begin = time.perf_counter()
            for _ in range(case.repeat):
                contender.step(optimizers[name], params[name], NO_LIMIT)
            end = time.perf_counter()
            if number >= 0:
                seconds[name][batch, number] = (end - begin) / case.repeat
                corrected[name] += corrected_share(optimizers[name])
        tick()
    return [Timing(c, seconds[c.name], mean(corrected[c.name])) for c in contenders]


def corrected_share(optimizer: torch.optim.Optimizer) -> list[float]:
    """The share of the parameters that were corrected in the last step; nothing where there is no gate."""
    verdicts = optimizer.last_step() if hasattr(optimizer, "last_step") else {}
    if not verdicts:
        return []
    numel = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    return [sum(p.numel() for p, verdict in verdicts.items() if verdict.corrected) / numel]


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def batches(case: Case) -> list[list[Contender]]:
    """The contenders in batches that fit into memory together, each led by the baseline."""
    baseline, *others = case.contenders
    # Parameters and two moments; 40% of what is free stays for the rest of the machine.
    size = 12 * sum(torch.Size(shape).numel() for shape in case.shapes)
    fit = max(2, min(6, int(0.6 * available_memory() / size)))
    return [[baseline, *others[i : i + fit - 1]] for i in range(0, len(others), fit - 1)]


def available_memory() -> float:
    try:
        with open("/proc/meminfo") as lines:
            return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 8e9


# ------------------------------------------------------------------ ratios


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


def reached(timings: dict[str, Timing], name: str, target: Target) -> tuple[float, bool]:
    measured = ratio(timings, name, target.against)
    return measured, measured <= target.ratio
