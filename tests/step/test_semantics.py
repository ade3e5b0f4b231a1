"""Semantics of torch.optim: skipped parameters, step counts, groups, closures, schedulers, tensor lr."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler

from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, train
from records import BACKENDS, RECORDS, Record, each_backend, each_optimizer
from tensors import values

# For every argument a value far from the typical ones.
OTHER: dict[str, Any] = {
    "lr": 0.3,
    "betas": (0.3, 0.6),
    "eps": 0.05,
    "weight_decay": 0.9,
    "momentum": 0.4,
    "dampening": 0.7,
    "nesterov": True,
    "delta": 30.0,
    "wd_ratio": 0.8,
    "decay": "proximal",
    "projection": "layer",
    "project_momentum": True,
    "maximize": True,
    "decouple_lr": True,
    "speculate": False,
    "master_weights": True,
    "state_dtype": torch.bfloat16,
    "stochastic_rounding": True,
    "seed": 7,
}
BF16_ALONE = ("master_weights", "stochastic_rounding", "seed")  # have an effect on bfloat16 parameters only
WITH = {"seed": {"stochastic_rounding": True}}  # what an argument has an effect with


def _arguments() -> list[Any]:
    """Every argument of every optimizer; a new one without a value above is an error."""
    return [
        pytest.param(record, name, id=f"{record.name}-{name}")
        for record in RECORDS.values()
        for name in record.make([torch.zeros(1)], lr=0.1, backend="reference").defaults
        if name not in ("backend", "capturable")  # the latter is in test_capturable.py
    ]


@each_backend
@pytest.mark.parametrize(("record", "name"), _arguments())
def test_every_argument_may_differ_per_group(backend: str, record: Record, name: str) -> None:
    dtype = torch.bfloat16 if name in BF16_ALONE else torch.float32
    first, second = parameters(dtype), parameters(dtype)
    typical = {**record.typical, **WITH.get(name, {})}
    opt = record.make([{"params": first}, {"params": second, name: OTHER[name]}], backend=backend, **typical)
    train(opt, range(3))
    for i, arguments in enumerate((typical, {**typical, name: OTHER[name]})):
        # As the second group here too, since random bits depend on the number of a parameter.
        alone = [parameters(dtype), parameters(dtype)]
        train(record.make([{"params": params} for params in alone], backend=backend, **arguments), range(3))
        for p, q in zip((first, second)[i], alone[i], strict=True):
            assert_same_bits(p, q, f"{name}={arguments.get(name)!r}")


# test_precision.py says what a change of state_dtype takes.
@each_backend
@pytest.mark.parametrize(("record", "name"), [case for case in _arguments() if case.values[1] != "state_dtype"])
def test_every_argument_may_change_between_steps(backend: str, record: Record, name: str) -> None:
    dtype = torch.bfloat16 if name in BF16_ALONE else torch.float32
    typical = {**record.typical, **WITH.get(name, {})}
    opt = train(record.make(parameters(dtype), backend=backend, **typical), range(2))
    params = [p.detach().clone() for p in parameters_of(opt)]
    fresh = record.make(params, backend=backend, **typical)
    fresh.load_state_dict(opt.state_dict())
    for each in (opt, fresh):
        each.param_groups[0][name] = OTHER[name]
    assert_same_state(train(opt, [2]), train(fresh, [2]))


@each_backend
@pytest.mark.parametrize(
    ("name", "value", "change", "new"),
    [
        ("betas", [0.9, 0.99], lambda betas: betas.__setitem__(0, 0.1), (0.1, 0.99)),
        ("lr", np.array(0.1), lambda lr: lr.fill(0.3), 0.3),
        ("betas", (torch.tensor(0.9), 0.99), lambda betas: betas[0].fill_(0.1), (torch.tensor(0.1), 0.99)),
    ],
    ids=["list", "array", "tuple_of_tensors"],
)
def test_arguments_changed_in_place(backend: str, name: str, value: Any, change: Any, new: Any) -> None:
    """The group's object is the same after the change."""
    opt, other = (
        train(RECORDS["AdamW"].make(parameters(), backend=backend, **{name: copy.deepcopy(value)}), range(2))
        for _ in range(2)
    )
    change(opt.param_groups[0][name])
    other.param_groups[0][name] = new
    assert_same_state(train(opt, [2]), train(other, [2]))


@pytest.mark.parametrize("second", BACKENDS)
@each_backend
def test_groups_on_different_backends(backend: str, second: str) -> None:
    record = RECORDS["AdamP"]
    groups = [{"params": parameters()}, {"params": parameters(torch.float64), "backend": second}]
    opt = train(record.make(groups, backend=backend, **record.typical), range(4))
    alone = [
        train(record.make(parameters(dtype), backend=name, **record.typical), range(4))
        for dtype, name in ((torch.float32, backend), (torch.float64, second))
    ]
    for p, q in zip(parameters_of(opt), [p for each in alone for p in parameters_of(each)], strict=True):
        assert_same_bits(p, q, "parameter")
    assert set(opt.last_step()) == {p for p in parameters_of(opt) if p.dim() > 1}


@each_backend
@each_optimizer
def test_dtypes_mix_within_a_group(backend: str, record: Record) -> None:
    dtypes = [torch.float16, torch.float64, torch.bfloat16, torch.float32]
    opt = record.make([p for d in dtypes for p in parameters(d)], backend=backend, **record.typical)
    train(opt, range(3))
    alone = [train(record.make(parameters(d), backend=backend, **record.typical), range(3)) for d in dtypes]
    for p, q in zip(parameters_of(opt), [p for each in alone for p in parameters_of(each)], strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
@each_optimizer
def test_parameter_without_a_gradient_is_skipped(backend: str, record: Record) -> None:
    """No decay, moment or count, neither before its first gradient nor later."""
    opt = record.make(parameters(), backend=backend, **record.typical)
    skipped = parameters_of(opt)[::2]
    for time in range(2):
        feed(opt, time)
        for p in skipped:
            p.grad = None
        opt.step()
    for p, start in zip(skipped, parameters()[::2], strict=True):
        assert_same_bits(p, start, "without a gradient")
        assert p not in opt.state
    train(opt, [2])
    before = Snapshot(opt)
    opt.zero_grad()
    opt.step()
    before.assert_unchanged()


@each_backend
@each_optimizer
def test_every_parameter_counts_its_own_steps(backend: str, record: Record) -> None:
    """A parameter with a gradient at every second step equals one that is stepped half as often."""
    opt = record.make(parameters(), backend=backend, **record.typical)
    rare = parameters_of(opt)[::2]
    for time in range(6):
        feed(opt, time)
        for p in rare if time % 2 else ():
            p.grad = None
        opt.step()
    often = train(record.make(parameters(), backend=backend, **record.typical), range(6))
    seldom = train(record.make(parameters(), backend=backend, **record.typical), range(0, 6, 2))
    for i, p in enumerate(parameters_of(opt)):
        other = often if i % 2 else seldom
        q = parameters_of(other)[i]
        assert_same_bits(p, q, f"parameter {i}")
        for key, value in other.state.get(q, {}).items():
            assert_same_bits(opt.state[p][key], value, f"parameter {i} {key}")


@each_backend
@each_optimizer
def test_closure(backend: str, record: Record) -> None:
    w = values((4, 6), torch.float32, 1).requires_grad_()
    opt = record.make([w], backend=backend, **record.typical)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        opt.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    start = float((w.detach() ** 2).sum())
    with torch.no_grad():
        loss = opt.step(closure)
    assert calls == [True]
    assert float(loss.detach()) == start
    other = values((4, 6), torch.float32, 1)
    other.grad = 2 * other
    record.make([other], backend=backend, **record.typical).step()
    assert_same_bits(w, other, "parameter")
    assert opt.step() is None


@each_backend
@each_optimizer
def test_zero_grad(backend: str, record: Record) -> None:
    opt = train(record.make(parameters(), backend=backend, **record.typical), [0])
    buffers = [p.grad for p in parameters_of(opt)]
    opt.zero_grad(set_to_none=False)
    assert all(p.grad is b and not b.any() for p, b in zip(parameters_of(opt), buffers, strict=True))
    opt.step()
    opt.zero_grad()
    assert all(p.grad is None for p in parameters_of(opt))


@each_backend
@each_optimizer
def test_lr_as_a_tensor(backend: str, record: Record) -> None:
    """Also when it is changed in place."""
    lr = torch.tensor(0.125)
    opt = record.make(parameters(), backend=backend, **{**record.typical, "lr": lr})
    other = record.make(parameters(), backend=backend, **{**record.typical, "lr": 0.125})
    assert_same_state(train(opt, range(2)), train(other, range(2)))
    lr.fill_(0.25)
    other.param_groups[0]["lr"] = 0.25
    assert_same_state(train(opt, [2]), train(other, [2]))
    opt.param_groups[0]["lr"] = torch.tensor([0.5], dtype=torch.float64)
    other.param_groups[0]["lr"] = 0.5
    assert_same_state(train(opt, [3]), train(other, [3]))


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamProx", "AdamProxL2", "AdamP", "SGDP"])
def test_decouple_lr_under_a_scheduler(backend: str, name: str) -> None:
    """The decay is (lr/initial_lr)*wd with the group's own initial_lr, and 0 at lr = 0."""
    record = RECORDS[name]
    arguments = {**record.typical, "decouple_lr": True, "weight_decay": 0.06}
    groups = [{"params": parameters(), "lr": 0.1}, {"params": parameters(), "lr": 0.4}]
    opt = record.make(groups, backend=backend, **arguments)
    # In torch's convention the same decay is wd/initial_lr.
    plain = {**record.typical, "decouple_lr": False}
    others = [record.make(parameters(), backend=backend, **{**plain, "lr": lr, "weight_decay": 0.06 / lr})
              for lr in (0.1, 0.4)]  # fmt: skip
    others_params = [p for each in others for p in parameters_of(each)]
    schedules = [lr_scheduler.LambdaLR(each, lambda t: max(0.0, 1 - t / 3)) for each in (opt, *others)]
    assert [group["initial_lr"] for group in opt.param_groups] == [0.1, 0.4]
    for time in range(5):
        feed(opt, time)
        for p, q in zip(parameters_of(opt), others_params, strict=True):
            q.grad = p.grad
        for each, schedule in zip((opt, *others), schedules, strict=True):
            each.step()
            schedule.step()
    for p, q in zip(parameters_of(opt), others_params, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@each_backend
def test_named_parameters(backend: str) -> None:
    model = torch.nn.Linear(3, 2)
    opt = RECORDS["AdamP"].make(model.named_parameters(), backend=backend)
    train(opt, [0])
    assert set(opt.last_step()) == {model.weight}
    assert opt.state_dict()["param_groups"][0]["param_names"] == ["weight", "bias"]


@each_backend
@each_optimizer
def test_step_without_gradients(backend: str, record: Record) -> None:
    """An empty group, and no gradient anywhere."""
    opt = record.make([{"params": []}, {"params": parameters()}], backend=backend, **record.typical)
    before = Snapshot(opt)
    assert opt.step() is None
    before.assert_unchanged()
    assert not opt.state
    assert opt.last_step() == {}


@each_backend
def test_argument_changed_in_place_and_then_replaced(backend: str) -> None:
    """The step compares with a copy of the last argument, which must not change with its object."""
    lr = np.array(0.1)
    opt = train(RECORDS["AdamW"].make(parameters(), backend=backend, lr=lr), range(2))
    other = train(RECORDS["AdamW"].make(parameters(), backend=backend, lr=0.1), range(2))
    lr.fill(0.3)
    for each in (opt, other):
        each.param_groups[0]["lr"] = 0.3
    assert_same_state(train(opt, [2]), train(other, [2]))
