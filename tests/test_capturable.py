"""capturable=True: step counts and hyper-parameters on the device, so that a captured step replays with what they are then.

The device is the CPU here, so tensors on the CPU count as tensors on the device; see emulated_backend.py. tests/gpu has the
real graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, gradient_at, parameters, parameters_of, through_a_file, train
from emulated_backend import emulated, plan_of
from oracles import Arguments
from records import DTYPES, RECORDS, Record, each_dtype, each_optimizer, each_variant
from schedules import SCHEDULERS, advance
from tensors import values
from test_block_orders import Device, on

LIVE = ("lr", "weight_decay", "momentum")


@pytest.fixture(autouse=True)
def no_capture() -> Iterator[None]:
    yield
    emulated.set_capturing(False)
    emulated.reset()


def on_device(arguments: Arguments, dtype: torch.dtype = torch.float64) -> Arguments:
    """With every number that may be a tensor on the device as one. float64 holds what a Python float does."""
    out = {name: torch.tensor(value, dtype=dtype) if name in LIVE else value for name, value in arguments.items()}
    if "betas" in out:
        out["betas"] = tuple(torch.tensor(beta, dtype=dtype) for beta in out["betas"])
    return out


def with_betas(record: Record, arguments: Arguments) -> Arguments:
    return {"betas": (0.9, 0.999), **arguments} if record.name.startswith("Adam") else dict(arguments)


def make(record: Record, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    return record.make(parameters(dtype), backend="emulated", **arguments)


def capture(opt: Any) -> None:
    """Records a step without taking it."""
    emulated.set_capturing(True)
    opt.step()
    emulated.set_capturing(False)


def put(opt: Any, time: int) -> None:
    """New numbers in the gradients that a captured step reads."""
    for p in parameters_of(opt):
        p.grad.copy_(gradient_at(p, time))


# ------------------------------------------------------------------ the same step


@each_dtype
@each_variant
def test_the_same_step(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """The bits of a step that is not capturable: the device works out its scalars as the host does."""
    opt = train(make(record, dtype, **arguments), range(4))
    for given in (arguments, on_device(with_betas(record, arguments))):
        assert_same_state(train(make(record, dtype, capturable=True, **given), range(4)), opt)


@each_variant
def test_float32_hyper_parameters(record: Record, arguments: Arguments) -> None:
    """A float32 tensor means the number that it holds."""
    given = on_device(with_betas(record, arguments), torch.float32)
    numbers = {name: float(value) if isinstance(value, Tensor) else value for name, value in given.items()}
    if "betas" in given:
        numbers["betas"] = tuple(map(float, given["betas"]))
    opt = train(make(record, capturable=True, **given), range(3))
    assert_same_state(opt, train(make(record, **numbers), range(3)))


@each_optimizer
def test_step_counts_are_on_the_device(record: Record) -> None:
    opt = train(make(record, capturable=True, **record.typical), range(3))
    counts = [own["step"] for own in opt.state.values() if "step" in own]
    assert len(counts) == (len(parameters_of(opt)) if record.name.startswith("Adam") else 0)
    for count in counts:
        assert isinstance(count, Tensor) and count.dtype == torch.float32 and float(count) == 3
    train(opt, [3])
    assert [own["step"] for own in opt.state.values() if "step" in own] == counts  # the same tensors
    assert all(float(count) == 4 for count in counts)


@each_optimizer
def test_prepare_is_launched_first(record: Record) -> None:
    opt = train(make(record, capturable=True, **record.typical), range(2))
    feed(opt, 2)
    for _ in range(2):
        opt.step()
    assert plan_of(opt).launches == ["prepare"] + (["update", "settle"] if record.projected else ["step"])


@pytest.mark.parametrize("count", [10, 300, 1500])
def test_many_tensors(count: int) -> None:
    """Every tensor has its own count and scalars: more tensors than the one block of `prepare` has threads, and more than
    gradients come by value. Some have none now and then."""
    with on(Device(0, multiprocessors=1, blocks=1)):
        _step_many_tensors(count)


def _step_many_tensors(count: int) -> None:
    made = [
        onepass.AdamW(
            [values((3,), torch.float32, i) for i in range(count)],
            weight_decay=0.3,
            backend="emulated",
            capturable=capturable,
        )
        for capturable in (True, False)
    ]
    for time in range(3):
        for opt in made:
            for i, p in enumerate(parameters_of(opt)):
                p.grad = None if (i + time) % 3 == 0 else torch.full((3,), math.sin(i + 1 + time))
            opt.step()
    assert_same_state(*made)
    assert {float(own["step"]) for own in made[0].state.values()} == {2.0}


def test_groups_with_and_without() -> None:
    """In one plan, over every dtype."""
    made = []
    for second in (True, False):
        groups = [{"params": parameters(d), "capturable": c, "lr": 0.1} for d in DTYPES for c in (False, second)]
        made.append(train(onepass.AdamW(groups, weight_decay=0.3, backend="emulated"), range(3)))
    assert_same_state(*made)


@each_optimizer
def test_negated_gradients(record: Record) -> None:
    """Complex autograd leaves gradients that are to be negated when they are read."""
    opt, other = (make(record, capturable=capturable, **record.typical) for capturable in (True, False))
    for time in range(2):
        for each in (opt, other):
            for p in parameters_of(each):
                p.grad = torch._neg_view(gradient_at(p, time))
            each.step()
    assert_same_state(opt, other)


# ------------------------------------------------------------------ changes in place


def moved(arguments: Arguments, time: int) -> Arguments:
    """Hyper-parameters of a later step."""
    factors = {"lr": 0.9**time, "weight_decay": 1.1**time, "momentum": 0.95**time}
    out = {name: value * factors.get(name, 1) for name, value in arguments.items() if name in LIVE}
    if "betas" in arguments:
        out["betas"] = tuple(beta * 0.99**time for beta in arguments["betas"])
    return out


def write(opt: Any, new: Arguments) -> None:
    """Into the tensors of the group, in place."""
    group = opt.param_groups[0]
    for name, value in new.items():
        for to, number in zip(group[name], value, strict=True) if name == "betas" else [(group[name], value)]:
            to.fill_(number)


@each_variant
def test_changes_in_place(record: Record, arguments: Arguments) -> None:
    """Take effect at the next step, without a new plan."""
    given = with_betas(record, arguments)
    opt = make(record, capturable=True, **on_device(given))
    other = make(record, **given)
    plans = set()
    for time in range(4):
        write(opt, moved(given, time))
        other.param_groups[0].update(moved(given, time))
        train(opt, [time])
        train(other, [time])
        plans.add(plan_of(opt))
    assert_same_state(opt, other)
    assert len(plans) == 1


def test_a_number_in_the_place_of_a_tensor() -> None:
    """And the other way round: what the group holds now counts."""
    record = RECORDS["AdamW"]
    opt, other = make(record, capturable=True, lr=0.1), make(record, lr=0.1)
    for time, lr in enumerate(
        [0.1, torch.tensor(0.05, dtype=torch.float64), torch.tensor(0.02, dtype=torch.float64), 0.3]
    ):
        opt.param_groups[0]["lr"], other.param_groups[0]["lr"] = lr, float(lr)
        train(opt, [time])
        train(other, [time])
    assert_same_state(opt, other)


def test_initial_lr_does_not_move_with_lr() -> None:
    """decouple_lr divides by what lr was at first, not by the tensor that is being changed."""
    opt = make(RECORDS["AdamW"], capturable=True, lr=torch.tensor(0.5), weight_decay=0.25, decouple_lr=True)
    train(opt, [0])
    opt.param_groups[0]["lr"].fill_(0.125)
    assert float(opt.param_groups[0]["initial_lr"]) == 0.5
    other = make(RECORDS["AdamW"], lr=0.5, weight_decay=0.25, decouple_lr=True)
    train(other, [0])
    other.param_groups[0]["lr"] = 0.125
    assert_same_state(train(opt, [1]), train(other, [1]))


# ------------------------------------------------------------------ captured


@each_dtype
@each_variant
def test_replays(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """A captured step replayed, with other gradients, step counts and hyper-parameters each time, is so many steps."""
    given = with_betas(record, arguments)
    opt, other = make(record, dtype, capturable=True, **on_device(given)), make(record, dtype, **given)
    for each in (opt, other):
        train(each, range(2))
    before = Snapshot(opt)
    capture(opt)
    before.assert_unchanged()
    for time in range(2, 6):
        write(opt, moved(given, time))
        put(opt, time)
        emulated.replay()
        other.param_groups[0].update(moved(given, time))
        train(other, [time])
        assert_same_state(opt, other)
        assert repr(list(opt.last_step().values())) == repr(list(other.last_step().values()))


def test_a_replay_launches_what_was_captured() -> None:
    opt = train(make(RECORDS["AdamP"], capturable=True, lr=0.1), range(3))
    feed(opt, 3)
    opt.step()
    capture(opt)
    assert plan_of(opt).launches == ["prepare", "update", "settle"]
    emulated.reset()
    emulated.replay()
    emulated.replay()
    assert len(emulated.launches()) == 6


@each_optimizer
def test_capture_of_what_is_not_capturable(record: Record) -> None:
    opt = train(make(record, **record.typical), range(2))
    before = Snapshot(opt)
    emulated.set_capturing(True)
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    emulated.set_capturing(False)
    for words in ("captured into a CUDA graph", "param group 0 has capturable=False", "use capturable=True"):
        assert words in str(caught.value)
    before.assert_unchanged()
    emulated.replay()
    before.assert_unchanged()
    other = train(make(record, **record.typical), range(3))
    assert_same_state(train(opt, [2]), other)


def test_the_group_that_is_not_capturable_is_named() -> None:
    groups = [{"params": [torch.ones(3)], "capturable": c} for c in (True, True, False)]
    opt = onepass.AdamW(groups, backend="emulated")
    for p in parameters_of(opt):
        p.grad = torch.ones(3)
    opt.step()
    emulated.set_capturing(True)
    with pytest.raises(RuntimeError, match="param group 2 has capturable=False"):
        opt.step()
    parameters_of(opt)[2].grad = None  # a group that is not stepped may be anything
    opt.step()


# ------------------------------------------------------------------ graphs and steps in between


def many(count: int) -> tuple[Any, Any, Callable[[Any, float], list[Tensor]]]:
    """A capturable optimizer and one that is not, and a way to give all parameters new gradient tensors."""
    made = [
        onepass.AdamW(
            [values((3,), torch.float32, i) for i in range(count)], lr=0.1, backend="emulated", capturable=capturable
        )
        for capturable in (True, False)
    ]

    def give(opt: Any, number: float) -> list[Tensor]:
        for p in parameters_of(opt):
            p.grad = torch.full((3,), number)
        return [p.grad for p in parameters_of(opt)]

    return (*made, give)


def both(opt: Any, other: Any, give: Callable[[Any, float], list[Tensor]], number: float) -> list[Tensor]:
    for each in (opt, other):
        kept = give(each, number)
        each.step()
    return kept


each_count = pytest.mark.parametrize("count", [10, 1500])


@each_count
def test_steps_between_replays(count: int) -> None:
    """A graph has its own gradients, other steps have theirs, whichever came last."""
    opt, other, give = many(count)
    kept = [both(opt, other, give, 1.0), give(opt, -1.0)]
    capture(opt)
    eager = give(opt, 2.0)
    for _ in range(3):
        for p, g in zip(parameters_of(opt), eager, strict=True):
            p.grad = g
        opt.step()
        give(other, 2.0)
        other.step()
        assert_same_state_but_gradients(opt, other)
        emulated.replay()
        give(other, -1.0)
        other.step()
        assert_same_state_but_gradients(opt, other)
    assert len(kept) == 2


@each_count
def test_a_capture_that_is_not_replayed(count: int) -> None:
    """Not, or not yet: what it is to bring to the plan is not there."""
    opt, other, give = many(count)
    kept = [both(opt, other, give, 1.0), give(opt, -1.0)]
    capture(opt)
    give(other, -1.0)
    for each in (opt, other):
        each.step()
    assert_same_state_but_gradients(opt, other)
    capture(opt)
    kept.append(both(opt, other, give, 0.5))
    assert_same_state_but_gradients(opt, other)
    assert len(kept) == 3


def test_a_first_buffer_is_first_once() -> None:
    """The first gradient enters SGD's buffer undampened; so it does at one step, wherever a capture falls."""
    record = RECORDS["SGD"]
    given = dict(lr=0.1, momentum=0.5, dampening=0.5)
    opt, other = make(record, capturable=True, **given), make(record, **given)
    train(opt, [0])
    train(other, [0])
    capture(opt)
    train(opt, [1])
    train(other, [1])
    assert_same_state_but_gradients(opt, other)
    put(opt, 2)
    train(other, [2])
    opt.step()
    assert_same_state_but_gradients(opt, other)


def assert_same_state_but_gradients(got: Any, want: Any) -> None:
    for p, q in zip(parameters_of(got), parameters_of(want), strict=True):
        assert_same_bits(p, q, "parameter")
        for key, value in want.state[q].items():
            assert_same_bits(got.state[p][key], value, key)


# ------------------------------------------------------------------ schedulers


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("decouple", [False, True])
def test_schedulers_drive_a_captured_step(scheduler: str, decouple: bool) -> None:
    """They write into a tensor lr; a captured step sees it. The same as numbers give, but for their rounding."""
    given = dict(weight_decay=0.25, decouple_lr=decouple)
    record = RECORDS["AdamP"]
    opt = make(record, capturable=True, lr=torch.tensor(0.125, dtype=torch.float64), **given)
    other = make(record, lr=0.125, **given)
    lr = opt.param_groups[0]["lr"]
    schedules = [SCHEDULERS[scheduler](each) for each in (opt, other)]
    train(opt, [0])
    train(other, [0])
    capture(opt)
    seen = {float(lr)}
    for time in range(1, 6):
        for schedule in schedules:
            advance(schedule)
        assert opt.param_groups[0]["lr"] is lr
        put(opt, time)
        emulated.replay()
        train(other, [time])
        assert float(lr) == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
        for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        seen.add(float(lr))
    assert len(seen) > 1


# ------------------------------------------------------------------ refused


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@each_optimizer
def test_only_where_there_are_graphs(backend: str, record: Record) -> None:
    opt = record.make(parameters(), backend=backend, capturable=True, **record.typical)
    feed(opt, 0)
    before = Snapshot(opt)
    with pytest.raises(ValueError) as caught:
        opt.step()
    assert str(caught.value) == (
        "param group 0: capturable=True is for steps that are captured into a CUDA graph, got parameters on cpu with "
        f"backend {backend!r}; use capturable=False"
    )
    before.assert_unchanged()
    opt.param_groups[0]["capturable"] = False
    opt.step()


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_tensor_of_several_numbers(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold one number, got a tensor of shape \\(2,\\)"):
        make(RECORDS["AdamW"], capturable=True, **{name: torch.tensor([0.1, 0.2])})


# ------------------------------------------------------------------ checkpoints


def loaded(opt: Any, record: Record, **arguments: Any) -> Any:
    """A new optimizer on copies of the parameters, from a checkpoint of `opt`."""
    params = [p.detach().clone() for p in parameters_of(opt)]
    other = record.make(params, backend="emulated", **arguments)
    other.load_state_dict(through_a_file(opt.state_dict()))
    return other


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("source", [False, True])
@each_variant
def test_checkpoints(source: bool, target: bool, record: Record, arguments: Arguments) -> None:
    """From and to capturable, a run goes on as the unbroken one. capturable is the optimizer's own choice."""
    opt = train(make(record, capturable=source, **arguments), range(3))
    other = loaded(opt, record, capturable=target, **arguments)
    assert [group["capturable"] for group in other.param_groups] == [target]
    assert_same_state(train(other, range(3, 6)), train(opt, range(3, 6)))


@each_variant
def test_checkpoints_of_tensors(record: Record, arguments: Arguments) -> None:
    """Hyper-parameters that are tensors are saved with their values, and go on being seen."""
    given = with_betas(record, arguments)
    opt = train(make(record, capturable=True, **on_device(given)), range(2))
    write(opt, moved(given, 2))
    other = loaded(opt, record, capturable=True, **on_device(given))
    assert float(other.param_groups[0]["lr"]) == float(opt.param_groups[0]["lr"])
    for each in (opt, other):
        train(each, [2])
        write(each, moved(given, 3))
        train(each, [3])
    assert_same_state(other, opt)


def test_a_checkpoint_copies_the_tensors() -> None:
    """Two optimizers, one loaded from the other, do not share an lr."""
    record = RECORDS["AdamW"]
    opt = train(make(record, capturable=True, lr=torch.tensor(0.5)), range(2))
    other = make(record, capturable=True, lr=torch.tensor(0.25))
    other.load_state_dict(opt.state_dict())
    opt.param_groups[0]["lr"].fill_(0.125)
    assert float(other.param_groups[0]["lr"]) == 0.5


def test_capturable_from_some_step_on() -> None:
    """The argument may change between steps, as any. The step count moves to the device."""
    record = RECORDS["AdamP"]
    opt, other = (train(make(record, **record.typical), range(2)) for _ in range(2))
    opt.param_groups[0]["capturable"] = True
    train(opt, range(2, 4))
    assert_same_state(opt, train(other, range(2, 4)))
    opt.param_groups[0]["capturable"] = False
    assert_same_state(train(opt, range(4, 6)), train(other, range(4, 6)))
