"""torch's global defaults, which a program may set for its own tensors, affect no step."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from compare import assert_same_bits, assert_same_state
from drive import feed, parameters
from records import Record, each_backend, each_optimizer


@contextmanager
def default_dtype(dtype: torch.dtype) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Any:
    """torch also fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


DEFAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "device": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": lambda: torch.inference_mode(),
    "deterministic": deterministic,
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
}


SHAPES = [(6, 20), (13,), ()]


@each_backend
@each_optimizer
def test_global_defaults_have_no_effect(backend: str, record: Record) -> None:
    """A plain, a clipped, a scaled and a skipped step, and a checkpoint."""
    plain = record.make(parameters(shapes=SHAPES), backend=backend, **record.typical)
    others = {name: record.make(parameters(shapes=SHAPES), backend=backend, **record.typical) for name in DEFAULTS}
    one, two = torch.tensor(1.0), torch.tensor(2.0)

    def run(opt: Any, time: int) -> torch.Tensor:
        norm = one
        if time % 2:
            opt.found_inf, opt.grad_scale = one * (time == 3), two
        elif time:
            norm = opt.clip_grad_norm_(0.5)
        opt.step()
        if time % 2:
            del opt.found_inf, opt.grad_scale
            return torch.stack([getattr(opt.last_step(), name).double() for name in ("gate", "cosine", "p_norm")])
        opt.load_state_dict(opt.state_dict())
        return norm

    for time in range(5):
        feed(plain, time)
        want = run(plain, time)
        for name, opt in others.items():
            feed(opt, time)
            with DEFAULTS[name]():
                got = run(opt, time)
            assert_same_bits(got, want, f"{name}, step {time}")
            assert_same_state(opt, plain)
