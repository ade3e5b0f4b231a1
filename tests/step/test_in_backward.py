"""Steps in the backward pass: the bits of ordinary steps, with no two gradients alive at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import toy
from in_backward import step_in_backward
from records import INSTALLED, RECORDS, Record, each_optimizer
from tools import assert_same_weights

X, Y = toy.data().tensors


def backward(model: torch.nn.Module) -> None:
    torch.nn.functional.mse_loss(model(X), Y).backward()


def ordinary(make: Any, steps: int = 5) -> torch.nn.Module:
    model = toy.net()
    opt = make(model.parameters())
    for _ in range(steps):
        backward(model)
        opt.step()
        opt.zero_grad()
    return model


@pytest.mark.parametrize("backend", [*INSTALLED, "emulated"])
@each_optimizer
def test_same_bits_as_ordinary_steps(backend: str, record: Record) -> None:
    def make(params: Any) -> Any:
        return record.make(params, backend=backend, **record.typical)

    model = toy.net()
    optimizers = step_in_backward(model.parameters(), make)
    for _ in range(5):
        backward(model)
        assert all(p.grad is None for p in model.parameters())
    assert_same_weights(model, ordinary(make))
    assert set(optimizers) == set(model.parameters())


@each_optimizer
def test_one_gradient_at_a_time(record: Record) -> None:
    """When a parameter is stepped, no other has a gradient."""
    model, alive = toy.net(), []
    optimizers = step_in_backward(model.parameters(), lambda params: record.make(params, **record.typical))
    for opt in optimizers.values():
        opt.register_step_pre_hook(lambda *_: alive.append(sum(p.grad is not None for p in model.parameters())))
    backward(model)
    assert alive == [1] * len(optimizers)


def test_tied_weights() -> None:
    """A weight that is used twice is stepped once, on the sum of its gradients."""
    record, ends = RECORDS["AdamP"], []
    for in_backward in (True, False):
        w = torch.linspace(-1, 1, 64).reshape(8, 8).requires_grad_()
        opt = None if in_backward else record.make([w], **record.typical)
        optimizers = step_in_backward([w], lambda params: record.make(params, **record.typical)) if in_backward else {}
        for _ in range(3):
            ((X @ w).relu() @ w).square().mean().backward()
            if opt is not None:
                opt.step()
                opt.zero_grad()
        state = opt.state[w] if opt is not None else optimizers[w].state[w]
        assert int(state["step"]) == 3
        ends.append(w.detach())
    assert torch.equal(*ends)


def test_schedulers_and_checkpoints() -> None:
    """Each parameter's optimizer has its own schedule and state dict; a run resumes from them bit for bit."""

    def made() -> tuple[Any, Any, Any]:
        model = toy.net()
        optimizers = step_in_backward(model.parameters(), lambda params: RECORDS["AdamP"].make(params, lr=1e-2))
        schedules = [torch.optim.lr_scheduler.ExponentialLR(opt, 0.5) for opt in optimizers.values()]
        return model, optimizers, schedules

    def run(model: Any, schedules: Any, steps: int) -> None:
        for _ in range(steps):
            backward(model)
            for schedule in schedules:
                schedule.step()

    whole, _, schedules = made()
    run(whole, schedules, 4)
    first, optimizers, schedules = made()
    run(first, schedules, 2)
    second, others, other_schedules = made()
    second.load_state_dict(first.state_dict())
    for kind, to in ((optimizers.values(), others.values()), (schedules, other_schedules)):
        for old, new in zip(kind, to, strict=True):
            new.load_state_dict(old.state_dict())
    run(second, other_schedules, 2)
    assert_same_weights(second, whole)
