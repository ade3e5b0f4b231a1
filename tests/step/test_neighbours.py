"""Properties of one tensor or one step where neighbours differ: sign, step count, alignment, first buffer, options that change
while the same gradient tensors are refilled. Each backend against the reference.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from capturable import on_device
from compare import assert_same_bits
from drive import parameters_of
from records import BACKENDS, COMPILED, RECORDS, Record, each_backend, each_compiled, each_optimizer, each_projected
from tensors import gradient, values

SHAPES = [(6, 20), (13,), (3, 17)]
# Backends that count steps on the device, and so support capturable=True.
DEVICES = [name for name in BACKENDS if name not in ("reference", "cpu")]
each_device = pytest.mark.parametrize("backend", DEVICES)
each_counting = pytest.mark.parametrize(
    ("backend", "capturable"), [(name, False) for name in COMPILED] + [(name, True) for name in DEVICES]
)


def pair(record: Record, backend: str, capturable: bool = False, **arguments: Any) -> tuple[Any, Any]:
    """The optimizer on `backend`, and the same on the reference."""
    starts = [values(shape, torch.float32, seed) for seed, shape in enumerate(SHAPES)]
    ours = record.make([p.clone() for p in starts], backend=backend, capturable=capturable, **arguments)
    return ours, record.make(starts, backend="reference", **arguments)


def gradient_at(q: Tensor, time: int) -> Tensor:
    return gradient(("channel", "none", "layer")[time % 3], q, time) if q.dim() > 1 else values(q.shape, q.dtype, time)


def refill(ours: Any, model: Any, time: int) -> None:
    """Writes the next gradients into the tensors of the last."""
    for p, q in zip(parameters_of(ours), parameters_of(model), strict=True):
        q.grad = gradient_at(q, time)
        if p.grad is None:
            p.grad = torch.empty_like(q)
        p.grad.copy_(q.grad)


def step_both(ours: Any, model: Any) -> None:
    """Steps both, compares (bits where there is no gate), and copies the reference's weights to the other."""
    ours.step()
    model.step()
    gates, wanted = ours.last_step(), model.last_step()
    for i, (p, q) in enumerate(zip(parameters_of(ours), parameters_of(model), strict=True)):
        own, other = ours.state[p], model.state[q]
        for key in other.keys() - {"gate_counter"}:
            if key == "momentum" and q in wanted:  # projected with project_momentum
                torch.testing.assert_close(own[key], other[key], rtol=1e-5, atol=1e-6)
                own[key].copy_(other[key])
            else:
                assert_same_bits(own[key], other[key], f"parameter {i}, {key}")
        if q in wanted:
            assert gates[p].gate == wanted[q].gate
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            p.data.copy_(q)
        else:
            assert_same_bits(p, q, f"parameter {i}")


# ------------------------------------------------------------------ options between steps

OTHER: dict[str, Sequence[Any]] = {
    "lr": (0.3, 0.0),
    "weight_decay": (0.7, 0.0),
    "betas": ((0.5, 0.8), (0.0, 0.0)),
    "eps": (1e-2, 1e-60),
    "momentum": (0.4, 0.9),
    "dampening": (0.5, 0.0),
    "nesterov": (True, False),
    "delta": (5.0, 0.0),
    "wd_ratio": (0.7, 2.0),
    "decay": ("proximal", "decoupled"),
    "project_momentum": (True, False),
    "maximize": (True, False),
    "speculate": (False, True),
}


@each_counting
@each_optimizer
def test_options_that_change_between_steps(record: Record, backend: str, capturable: bool) -> None:
    """Each takes effect at the next step, although gradients and state keep their addresses."""
    arguments = {**record.typical, "momentum": 0.9} if record.name.startswith("SGD") else record.typical
    ours, model = pair(record, backend, capturable, **arguments)
    refill(ours, model, 0)
    step_both(ours, model)
    time = 1
    for key in OTHER.keys() & ours.defaults.keys():
        for value in OTHER[key]:
            if record.name == "SGD" and (key, value) in [("dampening", 0.5), ("nesterov", True)]:
                for opt in (ours, model):  # which exclude each other
                    opt.param_groups[0].update(nesterov=False, dampening=0.0)
            for opt in (ours, model):
                opt.param_groups[0][key] = value
            refill(ours, model, time)
            step_both(ours, model)
            time += 1


# ------------------------------------------------------------------ groups


@each_counting
@each_optimizer
def test_two_groups_that_differ_in_one_option(record: Record, backend: str, capturable: bool) -> None:
    """One launch steps all groups, and is compiled for the options of any. Each gate is predicted right and wrong."""
    arguments = {**record.typical, "momentum": 0.9} if record.name.startswith("SGD") else record.typical
    names = inspect.signature(record.make).parameters
    for key in [key for key in OTHER if key in names]:
        opts = []
        for own in (dict(backend=backend, capturable=capturable), dict(backend="reference")):
            groups = [[values(shape, torch.float32, seed) for seed, shape in enumerate(SHAPES)] for _ in range(2)]
            opts.append(
                record.make([{"params": groups[0]}, {"params": groups[1], key: OTHER[key][0]}], **arguments, **own)
            )
        ours, model = opts
        for time, gate in enumerate(("channel", "channel", "layer", "layer", "none")):
            for p, q in zip(parameters_of(ours), parameters_of(model), strict=True):
                p.grad = gradient(gate, q, time) if q.dim() > 1 else values(q.shape, q.dtype, time)
                q.grad = p.grad.clone()
            step_both(ours, model)


@each_compiled
@each_projected
def test_many_tensors_with_different_gates(record: Record, backend: str) -> None:
    """More tensors than one program, block or thread decides on at a time."""
    starts = [values((3, 5), torch.float32, seed) for seed in range(40)]
    ours = record.make([p.clone() for p in starts], backend=backend, **record.typical)
    model = record.make(starts, backend="reference", **record.typical)
    for time in range(3):
        for i, (p, q) in enumerate(zip(parameters_of(ours), parameters_of(model), strict=True)):
            q.grad = gradient(("channel", "none", "layer")[(i + time // 2) % 3], q, i + time)
            p.grad = q.grad.clone()
        step_both(ours, model)


@each_compiled
@each_optimizer
def test_plan_is_reused(record: Record, backend: str) -> None:
    """Plans cost more than steps. The gradient tensors are refilled."""
    ours, model = pair(record, backend, **record.typical)
    for time in range(4):
        refill(ours, model, time)
        ours.step()
        if time == 1:  # the first step makes the state
            bound_backends = list(ours._execution.backends)
            plans = [getattr(bound, "plan", None) for bound in bound_backends]
    assert all(a is b for a, b in zip(bound_backends, ours._execution.backends, strict=True))
    assert all(getattr(bound, "plan", None) is plan for bound, plan in zip(bound_backends, plans, strict=True))


# ------------------------------------------------------------------ tensors of one group


@each_counting
@each_optimizer
def test_one_lazily_negated_gradient(record: Record, backend: str, capturable: bool) -> None:
    """From the second step on, as by complex autograd. The other tensors have the same scalars but for the sign."""
    ours, model = pair(record, backend, capturable, **record.typical)
    for time in range(4):
        refill(ours, model, time)
        if time:
            p, q = parameters_of(ours)[time % 3], parameters_of(model)[time % 3]
            p.grad = torch._neg_view(-q.grad)
        step_both(ours, model)


@each_counting
@each_optimizer
def test_parameters_start_at_different_steps(record: Record, backend: str, capturable: bool) -> None:
    """Each tensor has its own step count, and its own first gradient, which torch.optim.SGD does not dampen."""
    arguments = dict(record.typical)
    if record.name in ("SGD", "SGDP"):
        arguments |= {"momentum": 0.9, "dampening": 0.5}
    ours, model = pair(record, backend, capturable, **arguments)
    for time, absent in enumerate(([1, 2], [2], [], [0], [])):
        refill(ours, model, time)
        for i in absent:
            parameters_of(ours)[i].grad = parameters_of(model)[i].grad = None
        ours_present, model_present = (
            [opt.param_groups[0]["params"][i] for i in range(3) if i not in absent] for opt in (ours, model)
        )
        ours.step()
        model.step()
        for p, q in zip(ours_present, model_present, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
            p.data.copy_(q)
            for key in model.state[q].keys() - {"gate_counter"}:
                assert_same_bits(ours.state[p][key], model.state[q][key], f"step {time}, {key}")


@each_compiled
@each_optimizer
@pytest.mark.parametrize("operand", ["p", "g", "moment"])
def test_one_operand_is_not_aligned(record: Record, backend: str, operand: str) -> None:
    """All operands but one start at a multiple of 16 bytes, and rows are whole vectors."""
    starts = [values((16, 64), torch.float32, seed) for seed in range(2)]

    def placed(t: Tensor, offset: int) -> Tensor:
        memory = torch.zeros(t.numel() + 8)
        offset += -memory.data_ptr() // 4 % 4
        return memory[offset : offset + t.numel()].view(t.shape).copy_(t)

    params = [placed(p, int(operand == "p" and i == 1)) for i, p in enumerate(starts)]
    ours = record.make(params, backend=backend, **record.typical)
    model = record.make(starts, backend="reference", **record.typical)
    for time in range(3):
        for i, (p, q) in enumerate(zip(params, starts, strict=True)):
            q.grad = gradient_at(q, time)
            p.grad = placed(q.grad, int(operand == "g" and i == 1))
        step_both(ours, model)
        if operand == "moment" and time == 0:
            own = ours.state[params[1]]
            for key in record.moments:
                own[key] = placed(own[key], 1)


# ------------------------------------------------------------------ extreme numbers


@each_compiled
@each_projected
@pytest.mark.parametrize("speculate", [True, False])
@pytest.mark.parametrize("length", [300, 40_000, 70_000], ids=["cached", "pieces", "three pieces"])
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_nan_anywhere_in_a_row(record: Record, backend: str, speculate: bool, length: int, where: str) -> None:
    """A NaN in any piece of any row closes the gate of its tensor, whose other rows would pass."""
    p = values((3, length), torch.float32, 1)
    opt = record.make([p], backend=backend, **{**record.typical, "speculate": speculate})
    p.grad = gradient("channel", p, 2)
    p.grad[1, {"first": 0, "middle": length // 2, "last": length - 1}[where]] = math.nan
    opt.step()
    verdict = opt.last_step()[p]
    assert verdict.gate == "none"
    assert math.isnan(verdict.cosine)


@each_device
@pytest.mark.parametrize("count", [2**16 - 1, 2**20, 2**24 - 1])
def test_large_step_counts_on_the_device(backend: str, count: int) -> None:
    """beta^t by squaring: every bit of the count matters."""
    arguments = dict(lr=0.1, betas=(1 - 1e-6, 1 - 1e-7), weight_decay=0.1)
    ours, model = pair(RECORDS["AdamW"], backend, capturable=True, **arguments)
    refill(ours, model, 0)
    step_both(ours, model)
    for opt in (ours, model):
        for own in opt.state.values():
            own["step"].fill_(count)
    refill(ours, model, 1)
    ours.step()
    model.step()
    for p, q in zip(parameters_of(ours), parameters_of(model), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@each_device
@each_optimizer
@pytest.mark.parametrize("decouple_lr", [False, True])
def test_zero_lr_on_the_device(backend: str, record: Record, decouple_lr: bool) -> None:
    """A warm-up from lr = 0: no parameter changes or becomes NaN, and the next step is right."""
    arguments = {**record.typical, "lr": 0.1, "decouple_lr": decouple_lr}
    ours, model = pair(record, backend, capturable=True, **on_device(arguments))
    for q, group in zip((ours, model), (ours.param_groups[0], model.param_groups[0]), strict=True):
        if q is model:
            group.update({key: float(v) if isinstance(v, Tensor) else v for key, v in group.items() if key != "params"})
    for time, lr in enumerate((0.0, 0.1, 0.0)):
        ours.param_groups[0]["lr"].fill_(lr)
        model.param_groups[0]["lr"] = lr
        before = [p.clone() for p in parameters_of(ours)]
        refill(ours, model, time)
        step_both(ours, model)
        for p, start in zip(parameters_of(ours), before, strict=True):
            assert not p.isnan().any()
            if lr == 0:
                assert_same_bits(p, start, "at lr=0")


@each_backend
@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamProx", "AdamProxL2", "AdamP"])
def test_eps_below_float32(backend: str, name: str) -> None:
    """It is 0 in float32 arithmetic: a coordinate whose gradients were 0 keeps its value, and is not NaN."""
    p = torch.full((2, 3), 2.0)
    opt = getattr(onepass, name)([p], lr=0.1, eps=1e-60, weight_decay=0.0, backend=backend)
    p.grad = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 1.0]])
    opt.step()
    torch.testing.assert_close(p, 2 - 0.1 * p.grad.sign())


@each_compiled
@pytest.mark.parametrize("groups", [1, 9])
@pytest.mark.parametrize("beside", [False, True], ids=["", "beside a capturable group"])
def test_two_dtypes_in_one_group(backend: str, groups: int, beside: bool) -> None:
    """Tensors of one group and step count share their scalars, but each rounds them to its own dtype."""
    if beside and backend not in DEVICES:
        pytest.skip("this backend counts no steps on a device")

    def made(name: str) -> Any:
        own: list[dict[str, Any]] = [
            {"params": [values((5,), torch.float32, i), values((7,), torch.float64, i)], "lr": 1e-3 * (i + 1)}
            for i in range(groups)
        ]
        if beside:
            own.append({"params": [values((3,), torch.float32, 99)], "capturable": name != "reference"})
        return onepass.AdamW(own, weight_decay=0.3, backend=name)

    ours, model = made(backend), made("reference")
    for time in range(3):
        refill(ours, model, time)
        ours.step()
        model.step()
        for i in range(groups):  # the device's powers may differ from the host's
            for p, q in zip(ours.param_groups[i]["params"], model.param_groups[i]["params"], strict=True):
                assert_same_bits(p, q, f"{p.dtype} of group {i} at step {time}")
