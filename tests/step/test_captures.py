"""A captured step replays with the current step counts and hyper-parameters. tests/gpu replays CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from capturable import capture, make, moved, on_device, put, with_betas, write
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, parameters_of, train
from emulated_backend import emulated, plan_of
from oracles import Arguments
from records import RECORDS, Record, each_dtype, each_optimizer, each_variant
from tensors import values

pytestmark = pytest.mark.usefixtures("no_capture")


# ------------------------------------------------------------------ capture and replay


@each_dtype
@each_variant
def test_replays(dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """Replays, each with other gradients, step counts and hyper-parameters, equal as many steps."""
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


def test_replay_launches_the_captured_kernels() -> None:
    opt = train(make(RECORDS["AdamP"], capturable=True, lr=0.1), range(3))
    feed(opt, 3)
    opt.step()
    capture(opt)
    assert plan_of(opt).launches == ["device_scalars", "update", "correct"]
    emulated.reset()
    emulated.replay()
    emulated.replay()
    assert len(emulated.launches()) == 6


@each_optimizer
def test_capture_needs_capturable(record: Record) -> None:
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


def test_error_names_the_group_that_is_not_capturable() -> None:
    groups = [{"params": [torch.ones(3)], "capturable": c} for c in (True, True, False)]
    opt = onepass.AdamW(groups, backend="emulated")
    for p in parameters_of(opt):
        p.grad = torch.ones(3)
    opt.step()
    emulated.set_capturing(True)
    with pytest.raises(RuntimeError, match="param group 2 has capturable=False"):
        opt.step()
    parameters_of(opt)[2].grad = None  # a group without gradients is not stepped
    opt.step()


# ------------------------------------------------------------------ eager steps between replays


def many(count: int) -> tuple[Any, Any, Callable[[Any, float], list[Tensor]]]:
    """A capturable optimizer, one that is not, and a function that gives all parameters new gradient tensors."""
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
def test_eager_steps_between_replays(count: int) -> None:
    """A graph reads the gradients of its capture, an eager step the current ones, in any order."""
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
def test_capture_with_the_gradients_of_the_last_step(count: int) -> None:
    """A capture with the gradients of the step before, a step with others, then a replay."""
    opt, other, give = many(count)
    both(opt, other, give, 1.0)
    captured = [p.grad for p in parameters_of(opt)]  # the memory that the graph reads
    capture(opt)
    later = give(opt, 2.0)
    opt.step()
    give(other, 2.0)
    other.step()
    emulated.replay()
    give(other, 1.0)
    other.step()
    assert_same_state_but_gradients(opt, other)
    assert len(captured) == len(later) == count


def test_memory_of_every_captured_plan_is_kept() -> None:
    """A graph points into its plan's memory, also after a new group has led to another plan, which is captured too."""
    opt = train(make(RECORDS["AdamW"], capturable=True, lr=0.1), range(2))
    capture(opt)
    first = opt._execution.backends[0].memory
    opt.add_param_group({"params": [values((3,), torch.float32, 7)]})
    train(opt, [2])
    capture(opt)
    second = opt._execution.backends[0].memory
    assert first is not second
    assert [any(memory is each for each in opt._execution.graph_tensors) for memory in (first, second)] == [True, True]


@each_count
def test_capture_without_replay(count: int) -> None:
    """Uploads of the captured step have not reached the plan, and later steps do not rely on them."""
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


def test_first_gradient_is_undampened_once() -> None:
    """The first gradient enters SGD's buffer undampened, at one step only, whichever step is captured."""
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
