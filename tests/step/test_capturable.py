"""capturable=True: step counts and hyper-parameters are on the device, which reads them at every step.

The emulated device is the CPU, so CPU tensors count as device tensors; see emulated_backend.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import onepass
from block_orders import Device, on
from capturable import make, moved, on_device, with_betas, write
from compare import Snapshot, assert_same_state
from drive import feed, gradient_at, parameters, parameters_of, train
from emulated_backend import plan_of
from oracles import Arguments
from records import DTYPES, RECORDS, Record, each_dtype, each_optimizer, each_variant
from tensors import values

# ------------------------------------------------------------------ the same step


@each_dtype
@each_variant
def test_same_bits_as_not_capturable(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """The bits of a step that is not capturable: the device computes the host's scalars."""
    opt = train(make(record, dtype, **arguments), range(4))
    for given in (arguments, on_device(with_betas(record, arguments))):
        assert_same_state(train(make(record, dtype, capturable=True, **given), range(4)), opt)


@each_variant
def test_float32_hyper_parameters(record: Record, arguments: Arguments) -> None:
    """A float32 tensor acts as its number."""
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
def test_device_scalars_is_launched_first(record: Record) -> None:
    opt = train(make(record, capturable=True, **record.typical), range(2))
    feed(opt, 2)
    for _ in range(2):
        opt.step()
    assert plan_of(opt).launches == ["device_scalars"] + (["update", "correct"] if record.projected else ["step"])


@pytest.mark.parametrize("count", [10, 300, 1500])
def test_many_tensors(count: int) -> None:
    """Every tensor has its own count and scalars: more tensors than the one block of `device_scalars` has threads, and than
    gradients are passed by value. Each has no gradient at one step."""
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


def test_capturable_and_other_groups() -> None:
    """In one plan, over every dtype."""
    made = []
    for second in (True, False):
        groups = [{"params": parameters(d), "capturable": c, "lr": 0.1} for d in DTYPES for c in (False, second)]
        made.append(train(onepass.AdamW(groups, weight_decay=0.3, backend="emulated"), range(3)))
    assert_same_state(*made)


@each_optimizer
def test_negated_gradients(record: Record) -> None:
    """Complex autograd leaves gradients that readers have to negate."""
    opt, other = (make(record, capturable=capturable, **record.typical) for capturable in (True, False))
    for time in range(2):
        for each in (opt, other):
            for p in parameters_of(each):
                p.grad = torch._neg_view(gradient_at(p, time))
            each.step()
    assert_same_state(opt, other)


# ------------------------------------------------------------------ changes in place


@each_variant
def test_changes_in_place(record: Record, arguments: Arguments) -> None:
    """New numbers in the tensors take effect at the next step, without a new plan."""
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


def test_lr_changes_between_number_and_tensor() -> None:
    """In both directions: a step uses the current value of the group."""
    record = RECORDS["AdamW"]
    opt, other = make(record, capturable=True, lr=0.1), make(record, lr=0.1)
    for time, lr in enumerate(
        [0.1, torch.tensor(0.05, dtype=torch.float64), torch.tensor(0.02, dtype=torch.float64), 0.3]
    ):
        opt.param_groups[0]["lr"], other.param_groups[0]["lr"] = lr, float(lr)
        train(opt, [time])
        train(other, [time])
    assert_same_state(opt, other)


def test_initial_lr_does_not_change_with_lr() -> None:
    """decouple_lr divides by the first value of lr, not by its tensor, which changes."""
    opt = make(RECORDS["AdamW"], capturable=True, lr=torch.tensor(0.5), weight_decay=0.25, decouple_lr=True)
    train(opt, [0])
    opt.param_groups[0]["lr"].fill_(0.125)
    assert float(opt.param_groups[0]["initial_lr"]) == 0.5
    other = make(RECORDS["AdamW"], lr=0.5, weight_decay=0.25, decouple_lr=True)
    train(other, [0])
    other.param_groups[0]["lr"] = 0.125
    assert_same_state(train(opt, [1]), train(other, [1]))


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@each_optimizer
def test_rejected_without_graphs(backend: str, record: Record) -> None:
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
def test_tensor_of_several_numbers_is_rejected(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must hold one number, got a tensor of shape \\(2,\\)"):
        make(RECORDS["AdamW"], capturable=True, **{name: torch.tensor([0.1, 0.2])})
