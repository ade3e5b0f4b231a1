"""torch's learning-rate schedulers with every optimizer: a step uses the current values of its group."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.optim import swa_utils

from compare import assert_same_state
from drive import feed, parameters, parameters_of, through_a_file, train, train_both
from records import RECORDS, Record, each_backend, each_optimizer
from schedules import CYCLES, SCHEDULERS, advance, of_torch

STEPS = 6
SHAPES: list[tuple[int, ...]] = [(6, 20), (13,)]
SCHEDULED = ("lr", "momentum", "betas")

each_scheduler = pytest.mark.parametrize("schedule", [*SCHEDULERS, *CYCLES])
each_cycle = pytest.mark.parametrize("schedule", CYCLES)


def make(record: Record, backend: str = "cpu", **changed: Any) -> Any:
    return record.make(parameters(shapes=SHAPES), backend=backend, **{**record.typical, **changed})


def scheduled(opt: Any, schedule: str) -> Any:
    return (SCHEDULERS | CYCLES)[schedule](opt)


def values_of(schedule: str, record: Record) -> list[dict[str, Any]]:
    """The values that the scheduler gives an optimizer of torch, step by step."""
    given = {name: value for name, value in record.typical.items() if name in SCHEDULED}
    kind = torch.optim.Adam if record.name.startswith("Adam") else torch.optim.SGD
    opt = kind([torch.nn.Parameter(torch.zeros(1))], **given)
    scheduler = scheduled(opt, schedule)
    values = []
    for _ in range(STEPS):
        group = opt.param_groups[0]
        values.append({name: group[name] for name in SCHEDULED if name in group})
        opt.step()
        advance(scheduler)
    return values


def check_against_values_set_by_hand(record: Record, backend: str, schedule: str) -> None:
    values = values_of(schedule, record)
    assert len({str(value["lr"]) for value in values}) > 1
    opt, twin = make(record, backend), make(record, backend)
    scheduler = scheduled(opt, schedule)
    for time, value in enumerate(values):
        twin.param_groups[0].update(value)
        train(opt, [time])
        train(twin, [time])
        assert_same_state(opt, twin)
        advance(scheduler)


def test_every_scheduler_of_torch_is_listed() -> None:
    assert set(SCHEDULERS) == of_torch()


@each_scheduler
@each_optimizer
def test_schedulers(record: Record, schedule: str) -> None:
    check_against_values_set_by_hand(record, "cpu", schedule)


@each_backend
@each_cycle
@each_optimizer
def test_cycles(backend: str, record: Record, schedule: str) -> None:
    values = values_of(schedule, record)
    assert len({str((value.get("momentum"), value.get("betas"))) for value in values}) > 1
    check_against_values_set_by_hand(record, backend, schedule)


@each_scheduler
@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD"])
def test_matches_torch(name: str, schedule: str) -> None:
    record = RECORDS[name]
    ours = make(record)
    theirs = record.oracles[0].make(parameters(shapes=SHAPES), record.typical)
    schedulers = [scheduled(opt, schedule) for opt in (ours, theirs)]
    for time in range(STEPS):
        train_both(ours, theirs, [time])
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for scheduler in schedulers:
            advance(scheduler)


@pytest.mark.parametrize("schedule", SCHEDULERS)
@each_optimizer
def test_tensor_lr(record: Record, schedule: str) -> None:
    """Schedulers write into the tensor."""
    lr = torch.tensor(record.typical["lr"], dtype=torch.float64)
    opt, twin = make(record, lr=lr), make(record)
    scheduler = scheduled(opt, schedule)
    seen = set()
    for time in range(STEPS):
        assert opt.param_groups[0]["lr"] is lr
        twin.param_groups[0]["lr"] = float(lr)
        train(opt, [time])
        train(twin, [time])
        assert_same_state(opt, twin)
        seen.add(float(lr))
        advance(scheduler)
    assert len(seen) > 1


# OneCycleLR sets initial_lr to the first lr of its cycle, max_lr/div_factor. The others do not change it.
INITIAL_LR = {"OneCycleLR": 0.2 / 25}


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("name", ["AdamW", "AdamProx", "AdamProxL2", "AdamP", "SGDP"])
def test_decouple_lr(name: str, schedule: str) -> None:
    """The decay is (lr/initial_lr)*wd: that of torch's convention with wd/initial_lr."""
    record = RECORDS[name]
    lr = record.typical["lr"]
    initial_lr = INITIAL_LR.get(schedule, lr)
    opt = make(record, weight_decay=0.05, decouple_lr=True)
    twin = make(record, weight_decay=0.05 / initial_lr)
    twin.param_groups[0]["initial_lr"] = lr  # CyclicLR uses an existing initial_lr at its first step
    schedulers = [scheduled(each, schedule) for each in (opt, twin)]
    for time in range(STEPS):
        train_both(opt, twin, [time])
        for p, q in zip(parameters_of(opt), parameters_of(twin), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        for scheduler in schedulers:
            advance(scheduler)


@each_scheduler
@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_resume_in_mid_schedule(name: str, schedule: str) -> None:
    record = RECORDS[name]
    opt = make(record, decouple_lr=True)
    scheduler = scheduled(opt, schedule)
    for time in range(3):
        train(opt, [time])
        advance(scheduler)
    params = [p.detach().clone().requires_grad_() for p in parameters_of(opt)]
    other = record.make(params, backend="cpu", **{**record.typical, "decouple_lr": True})
    other_scheduler = scheduled(other, schedule)
    other_scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
    other.load_state_dict(through_a_file(opt.state_dict()))
    for time in range(3, STEPS):
        for each, its in ((opt, scheduler), (other, other_scheduler)):
            train(each, [time])
            advance(its)
    assert_same_state(other, opt)


@each_backend
@pytest.mark.parametrize("moving", [False, True], ids=["mean", "moving"])
def test_averaged_model(backend: str, moving: bool) -> None:
    """swa_utils averages the parameters that the optimizer writes."""
    record = RECORDS["AdamP"]
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5))
    opt = record.make(model.parameters(), backend=backend, **record.typical)
    averaged = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.5) if moving else None)
    schedule = swa_utils.SWALR(opt, swa_lr=0.02, anneal_epochs=2)
    want = []
    for time in range(4):
        feed(opt, time)
        opt.step()
        schedule.step()
        averaged.update_parameters(model)
        new = [p.detach().clone() for p in model.parameters()]
        weight = 0.5 if moving else 1 / (time + 1)
        want = [torch.lerp(w, n, weight) for w, n in zip(want, new, strict=True)] if want else new
    assert opt.param_groups[0]["lr"] == 0.02
    for p, mean, last in zip(averaged.module.parameters(), want, new, strict=True):
        torch.testing.assert_close(p.detach(), mean)
        assert not torch.allclose(p, last)
