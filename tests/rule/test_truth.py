"""Single steps from given states against the formulas in long double, in units of the last place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import truth
from compare import UNIT, assert_same_bits, assert_within
from oracles import Arguments
from records import RECORDS, Record, each_backend, each_dtype, each_optimizer, each_variant
from tensors import generator, gradient, values

SHAPES = [(), (1,), (555,), (1, 40), (30, 17), (7, 5, 3, 3)]
# Measured: at most 2.4 for the moments and 3.8 for the parameter, in any dtype, variant and backend.
MOMENT_UNITS = 3
PARAMETER_UNITS = 4
# A corrected float64 parameter: the coefficients k1 - r*k0 and r of the correction are float64 too, which adds the
# roundings of r, r*k0 and the difference, up to a unit of k*u each (negligible in float32). Measured: 5.2.
CORRECTED_FLOAT64_UNITS = PARAMETER_UNITS + 3
# AdamProxL2 in float64: its coefficient lr*wd/s has three roundings. Measured: 4.3.
PROX_L2_FLOAT64_UNITS = PARAMETER_UNITS + 3


def _start(record: Record, arguments: Arguments, dtype: torch.dtype, backend: str) -> tuple[Any, list[Tensor]]:
    """An optimizer as in mid-training: given moments and step counts."""
    params = [values(shape, dtype, seed, scale=0.5) for seed, shape in enumerate(SHAPES)]
    opt = record.make(params, backend=backend, **arguments)
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for seed, p in enumerate(params):
        for key in record.moments:
            moment = values(p.shape, work, 100 + seed)
            opt.state[p][key] = moment.abs() + 0.1 if key == "exp_avg_sq" else moment
        if record.name.startswith("Adam"):
            opt.state[p]["step"] = torch.tensor(float(3 + seed), dtype=torch.float32)
    return opt, params


def _give_gradients(params: list[Tensor], kind: str) -> None:
    for seed, p in enumerate(params):
        if p.dim() > 1 and p.size(0) > 1:
            p.grad = gradient(kind, p, seed)
        else:
            p.grad = torch.randn(p.shape, generator=generator(seed)).to(p.dtype)


def _wide_state(opt: Any, p: Tensor) -> dict[str, Any]:
    return {
        key: float(value) if key == "step" else truth.wide(value)
        for key, value in opt.state[p].items()
        if key != "gate_counter"
    }


@each_backend
@each_dtype
@each_variant
def test_one_step(backend: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    kinds = ["channel", "layer", "none"] if record.projected else ["none"]
    for kind in kinds:
        opt, params = _start(record, arguments, dtype, backend)
        _give_gradients(params, kind)
        before = [(truth.wide(p), truth.wide(p.grad), _wide_state(opt, p)) for p in params]
        opt.step()
        for p, (x, g, state) in zip(params, before, strict=True):
            want = truth.step(record.name, opt.param_groups[0], x, g, state)
            name = f"{kind} gradient, parameter"
            units = PARAMETER_UNITS
            if dtype == torch.float64 and record.name == "AdamProxL2":
                units = PROX_L2_FLOAT64_UNITS
            elif dtype == torch.float64 and p in opt.last_step() and opt.last_step()[p].corrected:
                units = CORRECTED_FLOAT64_UNITS
            assert_within(p, want.p, want.size, units, name)
            _check_moments(record, opt.state[p], state, terms_of(x, g, opt.param_groups[0]), name)
            if p in opt.last_step():
                assert opt.last_step()[p].gate == want.gate


def terms_of(x: Any, g: Any, group: dict[str, Any]) -> Any:
    """A bound of the terms that a step adds to a moment: gradient, l2 decay, projection."""
    terms = np.abs(g) + np.abs(x) * (1 + float(group["weight_decay"]))
    return np.maximum(terms, terms**2)


def _check_moments(record: Record, own: Any, state: Any, terms: Any, name: str) -> None:
    for key in record.moments:
        if key in state:
            size = np.abs(state[key]) + terms
            assert_within(own[key], state[key], size, MOMENT_UNITS, f"{name} {key}")
    if "step" in state:
        assert float(own["step"]) == state["step"]


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@each_variant
def test_16_bit_rounds_once(backend: str, dtype: torch.dtype, record: Record, arguments: Arguments) -> None:
    """A 16-bit step is the float32 step of the same numbers and one rounding; the moments have the same bits."""
    opt16, narrow = _start(record, arguments, dtype, backend)
    opt32, full = _start(record, arguments, torch.float32, backend)
    _give_gradients(narrow, "none")
    for p, q in zip(narrow, full, strict=True):
        q.copy_(p.float())
        q.grad = p.grad.float()
    opt16.step()
    opt32.step()
    for p, q in zip(narrow, full, strict=True):
        if p in opt16.last_step() and opt16.last_step()[p].gate != "none":
            # Row sums may have another order where p is not float32.
            assert_within(p, q, q.abs() + 0.1, 8, "16-bit parameter")
        else:
            assert_same_bits(p, q.to(dtype), "16-bit parameter")
        for key in record.moments:
            if key in opt16.state[p] and not arguments.get("project_momentum"):
                assert_same_bits(opt16.state[p][key], opt32.state[q][key], key)


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamProx", "AdamP", "SGDP"])
def test_tiny_decay_has_no_bias(backend: str, name: str) -> None:
    """1 - 1e-5 rounded to float32 is a decay 0.14% too large; p - (d*p + k*u) has no such bias."""
    steps, q = 400, 1e-5
    rest = {"lr": 1.0, "weight_decay": q, "backend": backend}
    if name in ("AdamP", "SGDP"):
        rest["wd_ratio"] = 1.0
    start = torch.linspace(1, 2, 4096)
    p = start.clone()
    opt = RECORDS[name].make([p], **rest)
    p.grad = torch.zeros_like(p)
    for _ in range(steps):
        opt.step()
    lost = float((-(p.double() / start.double()).log()).mean())
    one = np.log1p(q) if name == "AdamProx" else -np.log1p(-q)
    assert lost == pytest.approx(steps * one, rel=2e-4)


@each_backend
@each_optimizer
def test_rounding_errors_over_many_steps(backend: str, record: Record) -> None:
    """The errors of single steps add up to no more than a random walk: float64, 200 steps."""
    p = values((12, 10), torch.float64, 1)
    opt = record.make([p], backend=backend, **record.typical)
    x, state = truth.wide(p), {"step": 0}
    if record.name != "SGD":
        state |= {key: 0 * x for key in record.moments}
    for seed in range(200):
        p.grad = values(p.shape, p.dtype, seed)
        opt.step()
        x = truth.step(record.name, opt.param_groups[0], x, truth.wide(p.grad), state).p
    assert_within(p, x, np.abs(x) + 1, 200, "after 200 steps")


def test_units_match_finfo() -> None:
    for dtype, unit in UNIT.items():
        assert unit == torch.finfo(dtype).eps / 2
