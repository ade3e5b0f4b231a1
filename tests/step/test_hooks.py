"""torch's additions to `step` and `zero_grad`: own and global hooks, the profiler's names, schedulers' checks."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.profiler import ProfilerActivity, profile

from compare import assert_same_state
from drive import feed, parameters, train
from records import RECORDS, Record, each_optimizer


def made(record: Record) -> Any:
    return record.make(parameters(), **record.typical)


@each_optimizer
def test_hook_order_and_arguments(record: Record) -> None:
    """An optimizer's own hooks run between the global ones; a pre-hook's return value replaces the arguments."""
    opt, seen = made(record), []
    loss = torch.tensor(3.0)

    def with_closure(opt: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        seen.append("own pre")
        return (*args, lambda: loss), kwargs

    opt.register_step_pre_hook(with_closure)
    own = opt.register_step_post_hook(lambda *_: seen.append("own post"))
    global_hooks = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("post")),
    ]
    try:
        feed(opt, 0)
        assert opt.step() is loss
    finally:
        for handle in global_hooks:
            handle.remove()
    assert seen == ["pre", "own pre", "own post", "post"]
    own.remove()
    opt.step()
    assert seen[4:] == ["own pre"]


@pytest.mark.parametrize(
    "register",
    [
        lambda opt: opt.register_step_pre_hook,
        lambda opt: opt.register_step_post_hook,
        lambda opt: register_optimizer_step_pre_hook,
        lambda opt: register_optimizer_step_post_hook,
    ],
    ids=["pre", "post", "global pre", "global post"],
)
def test_single_hook(register: Any) -> None:
    """The only hook is called from its registration until its removal."""
    opt, seen = train(made(RECORDS["AdamW"]), [0]), []
    handle = register(opt)(lambda *_: seen.append(opt))
    try:
        train(opt, range(2))
    finally:
        handle.remove()
    train(opt, [0])
    assert len(seen) == 2


@each_optimizer
def test_pre_hook_may_change_gradients_and_groups(record: Record) -> None:
    """The step uses the values that the hook has set."""
    opt, other = made(record), made(record)

    def change(opt: Any, *_: Any) -> None:
        opt.param_groups[0]["lr"] = 0.3
        for p in opt.param_groups[0]["params"]:
            p.grad *= 2

    opt.register_step_pre_hook(change)
    other.param_groups[0]["lr"] = 0.3
    assert_same_state(train(opt, range(2)), train(other, range(2), sign=2.0))


@each_optimizer
def test_profiler(record: Record) -> None:
    """The profile names a step and a zero_grad as torch's own."""
    opt = train(made(record), [0])
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        opt.step()
        opt.zero_grad()
    opt.step()
    names = {event.key for event in profiled.key_averages()}
    assert {f"Optimizer.{call}#{record.name}.{call}" for call in ("step", "zero_grad")} <= names


@each_optimizer
@pytest.mark.parametrize("again", [copy.deepcopy, lambda opt: pickle.loads(pickle.dumps(opt))], ids=["copy", "pickle"])
def test_copies_step_independently(record: Record, again: Any) -> None:
    """A copy has its own parameters, state and plan."""
    opt = train(made(record), range(2))
    other = again(opt)
    start = [p.detach().clone() for p in opt.param_groups[0]["params"]]
    train(other, [2])
    assert all(torch.equal(p, q) for p, q in zip(opt.param_groups[0]["params"], start, strict=True))
    assert_same_state(train(opt, [2]), other)
    assert {id(p) for p in other.last_step()} <= {id(p) for p in other.param_groups[0]["params"]}


def test_scheduler_detects_a_missing_step() -> None:
    """It wraps `step` on the instance, and warns if it is stepped before the optimizer."""
    ahead, in_order = made(RECORDS["AdamW"]), made(RECORDS["AdamW"])
    schedules = [torch.optim.lr_scheduler.StepLR(opt, 1) for opt in (ahead, in_order)]
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedules[0].step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(in_order, [0])
        schedules[1].step()


def test_step_keeps_its_name_and_docstring() -> None:
    step = RECORDS["AdamP"].make.step
    assert step.__name__ == "step" and "Performs one step" in step.__doc__
