"""The gate before timing: which contenders are there, and compute what they should."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from cases import Case, Contender, missing
from harness import Clock, attempt
from inputs import Model
from shapes import Shape

CHECKED: tuple[Shape, ...] = ((33, 65), (7, 5, 3, 3), (129,), (1, 40), (2, 12_000), (64,))


def check(contender: Contender, dtype: torch.dtype, kind: str, clock: Clock, steps: int = 3, lr: float = 1e-2) -> float:
    """Takes a few steps on small tensors beside onepass's reference on the CPU; the largest difference, in tolerances.

    Raises RuntimeError if that is above 1: what computes something else is not worth timing.
    """
    case = Case("check", "", CHECKED, (contender,), dtype, kind)
    model = Model(case, torch.device("cpu"), seed=2)
    truth = model.parameters[dtype]
    found = [p.to(clock.device, copy=True) for p in truth]
    twin, optimizer = contender.make_twin(truth, lr), contender.make(found, lr, clock.backend(contender.backend))
    for number in range(steps):
        model.give(truth, number)
        for p, q in zip(found, truth, strict=True):
            q.grad = q.grad.clone()  # clipping writes to it
            p.grad = q.grad.to(clock.device, copy=True)
        max_norm = 0.5 * float(torch.cat([q.grad.flatten() for q in truth]).norm())
        contender.step_of(optimizer, found, max_norm)()
        contender.step_of(twin, truth, max_norm)()
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


def absentees(contenders: Iterable[Contender], say: Callable[[str], object]) -> set[str]:
    """The contenders that are not installed; prints a line for each."""
    reasons = {contender.name: missing(contender) for contender in contenders}
    for name, reason in reasons.items():
        if reason:
            say(f"Not timed: {name}: {reason}")
    return {name for name, reason in reasons.items() if reason}


def check_all(chosen: Iterable[Case], clock: Clock, say: Callable[[str], object]) -> tuple[set[str], dict[str, float]]:
    """Names of the contenders with wrong results, a printed line for each, and the deviations of the others."""
    wrong: set[str] = set()
    right: dict[str, float] = {}
    pairs: dict[tuple[str, Any], Contender] = {
        (c.name, case.dtype_of(c)): c for case in chosen for c in case.contenders
    }
    for (name, dtype), contender in pairs.items():
        for kind in ("random", "tangent"):
            off, failed = attempt(partial(check, contender, dtype, kind, clock))
            if failed:
                say(f"Not timed: {name}: {failed}")
                wrong.add(name)
            else:
                right[name] = max(right.get(name, 0.0), off)
    return wrong, {name: off for name, off in right.items() if name not in wrong}
