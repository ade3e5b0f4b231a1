"""A step uses tensors and groups that users have replaced since the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, train
from records import RECORDS, Record, each_backend, each_optimizer
from tensors import LAYOUTS, Guarded, values


def _pair(record: Record, backend: str) -> tuple[Any, Any]:
    """Two optimizers after the same two steps: one to change, one to compare with."""
    return tuple(train(record.make(parameters(), backend=backend, **record.typical), range(2)) for _ in range(2))


def _assert_same_parameters(got: Any, want: Any) -> None:
    for i, (p, q) in enumerate(zip(parameters_of(got), parameters_of(want), strict=True)):
        assert_same_bits(p, q, f"parameter {i}")


def _elsewhere(t: Tensor) -> Tensor:
    return t.detach().clone()


def _in_another_layout(t: Tensor) -> Tensor:
    return Guarded(t.detach(), LAYOUTS["gapped_transposed"]).tensor


each_place = pytest.mark.parametrize("move", [_elsewhere, _in_another_layout], ids=["elsewhere", "strided"])
Move = Callable[[Tensor], Tensor]


@each_backend
@each_optimizer
@each_place
def test_replaced_data(backend: str, record: Record, move: Move) -> None:
    """p.data at a new address, and in a new layout; the old data is not written."""
    opt, other = _pair(record, backend)
    old = [p.data for p in parameters_of(opt)]
    for p in parameters_of(opt):
        p.data = move(p.data)
    kept = [t.clone() for t in old]
    train(opt, range(2, 4))
    _assert_same_parameters(opt, train(other, range(2, 4)))
    for before, after in zip(kept, old, strict=True):
        assert_same_bits(after, before, "the old data")


@each_backend
@each_optimizer
def test_replaced_data_with_other_values(backend: str, record: Record) -> None:
    opt, other = _pair(record, backend)
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        p.data = 2 * p.data
        with torch.no_grad():
            q.mul_(2)
    _assert_same_parameters(train(opt, [2]), train(other, [2]))


@each_backend
@each_optimizer
@each_place
def test_replaced_gradients(backend: str, record: Record, move: Move) -> None:
    """The gradient at a new address at every step, when the buffer of the step before is full of NaN."""
    opt, other = _pair(record, backend)
    for time in range(2, 6):
        old = [p.grad for p in parameters_of(opt)]
        feed(opt, time)
        for p, buffer in zip(parameters_of(opt), old, strict=True):
            p.grad = move(p.grad) if time % 2 else p.grad
            buffer.fill_(torch.nan)
        opt.step()
    train(other, range(2, 6))
    _assert_same_parameters(opt, other)


@each_backend
@each_optimizer
def test_refilled_gradients(backend: str, record: Record) -> None:
    opt, other = _pair(record, backend)
    for time in range(2, 4):
        buffers = [p.grad for p in parameters_of(opt)]
        feed(opt, time)
        for p, buffer in zip(parameters_of(opt), buffers, strict=True):
            buffer.copy_(p.grad)
            p.grad = buffer
        opt.step()
    _assert_same_parameters(opt, train(other, range(2, 4)))


@each_backend
@each_optimizer
@each_place
def test_replaced_moments(backend: str, record: Record, move: Move) -> None:
    """The step uses and writes state tensors that were put in by hand, and not those that they replaced."""
    opt, other = _pair(record, backend)
    old = []
    for own in opt.state.values():
        for key in record.moments:
            old.append((own[key], own[key].clone()))
            own[key] = move(own[key])
    assert_same_state(train(opt, range(2, 4)), train(other, range(2, 4)))
    for tensor, before in old:
        assert_same_bits(tensor, before, "the old moment")


@each_backend
@pytest.mark.parametrize("name", ["Adam", "AdamP"])
def test_replaced_step_counts(backend: str, name: str) -> None:
    opt, other = _pair(RECORDS[name], backend)
    for own in opt.state.values():
        own["step"] = torch.tensor(40.0)
    for own in other.state.values():
        own["step"].fill_(40.0)
    assert_same_state(train(opt, [2]), train(other, [2]))
    assert all(float(own["step"]) == 41 for own in opt.state.values())


@each_backend
@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_replaced_gate_counters(backend: str, name: str) -> None:
    """The step writes the new counter, and no longer the old one."""
    opt, other = _pair(RECORDS[name], backend)
    old = [own["gate_counter"] for own in opt.state.values() if "gate_counter" in own]
    for own in opt.state.values():
        if "gate_counter" in own:
            own["gate_counter"] = own["gate_counter"].clone()
    for counter in old:
        counter.fill_(77)
    assert_same_state(train(opt, range(2, 4)), train(other, range(2, 4)))
    assert old and all(int(counter) == 77 for counter in old)


@each_backend
@each_optimizer
def test_replaced_data_of_state_tensors(backend: str, record: Record) -> None:
    """Libraries that move an optimizer's state write `t.data = t.data.to(device)`."""
    opt, other = _pair(record, backend)
    old = []
    for own in opt.state.values():
        for tensor in own.values():
            old.append((tensor.data, tensor.clone()))
            tensor.data = tensor.data.clone()
    assert_same_state(train(opt, range(2, 4)), train(other, range(2, 4)))
    for tensor, before in old:
        assert_same_bits(tensor, before, "the old data")


@each_backend
@each_optimizer
def test_cleared_state_starts_anew(backend: str, record: Record) -> None:
    opt, _ = _pair(record, backend)
    params = [p.detach().clone() for p in parameters_of(opt)]
    opt.state.clear()
    fresh = record.make(params, backend=backend, **record.typical)
    assert_same_state(train(opt, range(2)), train(fresh, range(2)))


@each_backend
@each_optimizer
def test_removed_state_of_one_parameter(backend: str, record: Record) -> None:
    opt, _ = _pair(record, backend)
    p = parameters_of(opt)[2]
    alone = record.make([p.detach().clone()], backend=backend, **record.typical)
    del opt.state[p]
    train(opt, [5])
    train(alone, [5])
    assert_same_bits(p, parameters_of(alone)[0], "parameter")


@each_backend
@each_optimizer
def test_parameter_cast_to_bfloat16(backend: str, record: Record) -> None:
    """model.bfloat16() between two steps: the moments stay float32 and keep their values."""
    opt, other = _pair(record, backend)
    for each in (opt, other):
        for p in parameters_of(each):
            p.data = p.data.bfloat16()
            p.grad = None
    saved = other.state_dict()
    fresh = record.make(parameters_of(other), backend=backend, **record.typical)
    fresh.load_state_dict(saved)
    assert_same_state(train(opt, [2]), train(fresh, [2]))


@each_backend
@each_optimizer
def test_parameter_of_another_shape(backend: str, record: Record) -> None:
    """The step names it and raises while its moments have the old shape; without them it starts anew."""
    opt, _ = _pair(record, backend)
    p = parameters_of(opt)[0]
    p.data = values((3, 10), torch.float32, 7)
    p.grad = None
    feed(opt, 2)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0, shape \(3, 10\): its state"):
        opt.step()
    del opt.state[p]
    alone = train(record.make([p.detach().clone()], backend=backend, **record.typical), [2])
    opt.step()
    assert_same_bits(p, parameters_of(alone)[0], "parameter")


# ------------------------------------------------------------------ groups edited by hand


@each_backend
@each_optimizer
def test_edited_parameters_of_a_group(backend: str, record: Record) -> None:
    opt, other = _pair(record, backend)
    extra = values((4, 6), torch.float32, 9)
    alone = record.make([extra.clone()], backend=backend, **record.typical)
    opt.param_groups[0]["params"].append(extra)
    removed = opt.param_groups[0]["params"].pop(1)
    kept = removed.detach().clone()
    opt.param_groups[0]["params"].reverse()
    train(opt, range(2, 4))
    train(other, range(2, 4))
    train(alone, range(2, 4))
    assert_same_bits(removed, kept, "the parameter that was taken out")
    assert_same_bits(extra, parameters_of(alone)[0], "the parameter that was put in")
    stays = [q for i, q in enumerate(parameters_of(other)) if i != 1]
    for p, q in zip(parameters_of(opt)[1:], reversed(stays), strict=True):
        assert_same_bits(p, q, "the others")


@each_backend
@each_optimizer
def test_added_and_removed_groups(backend: str, record: Record) -> None:
    opt, other = _pair(record, backend)
    extra = values((4, 6), torch.float32, 9)
    start = extra.clone()
    opt.param_groups.append({**opt.param_groups[0], "params": [extra]})
    train(opt, [2])
    assert not torch.equal(extra, start)
    left = opt.param_groups.pop()["params"][0].clone()
    train(opt, [3])
    assert_same_bits(extra, left, "the group that left")
    _assert_same_parameters(opt, train(other, [2, 3]))


@each_backend
@each_optimizer
def test_changed_backend(backend: str, record: Record) -> None:
    """Every argument may change between steps, this one too."""
    opt, other = _pair(record, backend)
    fresh = record.make(
        [p.detach().clone() for p in parameters_of(other)], **{**record.typical, "backend": "reference"}
    )
    fresh.load_state_dict(other.state_dict())
    opt.param_groups[0]["backend"] = "reference"
    assert_same_state(train(opt, range(2, 4)), train(fresh, range(2, 4)))
