"""Proximal and decoupled decay: where they agree, and that only the proximal one never changes a sign."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from records import RECORDS, each_backend, each_dtype
from tensors import gradient, values

DECAYS = [1e-3, 0.5, 1.0, 3.0, 1e3, 1e8, 1e20]
PROXIMAL: list[tuple[str, dict[str, Any]]] = [
    ("AdamProx", {}),
    ("AdamProxL2", {}),
    ("AdamP", {"decay": "proximal", "wd_ratio": 1.0}),
    ("SGDP", {"decay": "proximal", "wd_ratio": 1.0, "momentum": 0.5}),
]
each_proximal = pytest.mark.parametrize(("name", "arguments"), PROXIMAL, ids=[n for n, _ in PROXIMAL])


def _decayed(name: str, p: Tensor, backend: str, **arguments: Any) -> Tensor:
    """p after one step on gradients of zero."""
    q = p.clone()
    opt = RECORDS[name].make([q], backend=backend, **arguments)
    q.grad = torch.zeros_like(q)
    opt.step()
    return q


@each_backend
@each_dtype
@each_proximal
@pytest.mark.parametrize("weight_decay", DECAYS, ids="{:g}".format)
def test_proximal_decay_keeps_the_sign(
    backend: str, dtype: torch.dtype, name: str, arguments: dict[str, Any], weight_decay: float
) -> None:
    """For any decay, no weight changes its sign or grows."""
    p = values((9, 60), dtype, 1)
    q = _decayed(name, p, backend, lr=1.0, weight_decay=weight_decay, **arguments).double()
    assert q.isfinite().all()
    # AdamProxL2's decay, p - (lr*wd*p)/(D + lr*wd), is rounded as a whole.
    slack = 4 * 2.0**-24 * p.double().abs() if name == "AdamProxL2" else 0
    assert (q * p.double().sign() >= -slack).all()
    assert (q.abs() <= p.abs()).all()


@each_backend
@pytest.mark.parametrize("weight_decay", DECAYS, ids="{:g}".format)
def test_proximal_decay_of_an_updated_weight(backend: str, weight_decay: float) -> None:
    """The decay shrinks p - s*u and keeps its sign."""
    p, g = values((500,), torch.float32, 1), values((500,), torch.float32, 2)
    stepped, shrunk = p.clone(), p.clone()
    for q, wd in ((stepped, 0.0), (shrunk, weight_decay)):
        opt = RECORDS["AdamProx"].make([q], lr=0.3, weight_decay=wd, backend=backend)
        q.grad = g
        opt.step()
    want = stepped.double() / (1 + 0.3 * weight_decay)
    # Where p and the update cancel, or almost nothing is left, the rounding errors of the terms remain.
    assert float(((shrunk.double() - want).abs() / (p.double().abs() + 0.3)).max()) < 4 * 2.0**-24


@each_backend
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
@pytest.mark.parametrize(("lr_wd", "sign"), [(0.5, 1), (0.999, 1), (1.001, -1), (1.5, -1), (2.5, -1)])
def test_decoupled_decay_flips_the_sign(backend: str, name: str, lr_wd: float, sign: int) -> None:
    """For lr*wd > 1 it overshoots zero, which the proximal decay never does."""
    p = values((9, 60), torch.float32, 1)
    more = {"wd_ratio": 1.0} if name == "AdamP" else {}
    q = _decayed(name, p, backend, lr=0.1, weight_decay=10 * lr_wd, **more)
    assert (p * q * sign > 0).all()
    torch.testing.assert_close(q, (1 - lr_wd) * p, rtol=1e-3, atol=1e-6)


@each_backend
def test_adamw_and_adamprox_differ(backend: str) -> None:
    """AdamW equals AdamProx to first order: they differ after 50 steps at lr*wd = 0.01, and less for a smaller wd."""
    distance = {}
    for wd in (1e-3, 1e-2):
        ends = []
        for name in ("AdamW", "AdamProx"):
            p = values((500,), torch.float64, 1)
            opt = RECORDS[name].make([p], lr=1.0, weight_decay=wd, backend=backend)
            for seed in range(50):
                p.grad = values((500,), torch.float64, seed)
                opt.step()
            ends.append(p)
        distance[wd] = float((ends[0] - ends[1]).abs().max() / ends[0].abs().max())
    assert distance[1e-2] > 1e-3
    assert distance[1e-3] < distance[1e-2]


def _minimum(objective: Callable[[Decimal], Decimal], low: Decimal, high: Decimal) -> Decimal:
    """Minimizer of a convex function between two points, by golden-section search, to some 25 digits."""
    ratio = (Decimal(5).sqrt() - 1) / 2
    for _ in range(160):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if objective(a) < objective(b):
            high = b
        else:
            low = a
    return (low + high) / 2


def _prox_step(p: float, m: float, v: float, t: int, lr: float, eta: float, group: dict[str, Any]) -> float:
    """The proximal step of l2 regularization in Adam's metric, from its definition: arXiv 2202.00089, section 3.

    With the metric M = lr/D and the step without decay y = p - M*m/(1-b1^t), the minimum over x of
    (x - y)^2/(2*M) + lambda*x^2/2, where M*lambda is eta*wd/D.
    """
    with localcontext() as context:
        context.prec = 60
        b1, b2 = (Decimal(b) ** t for b in group["betas"])
        D = (Decimal(v) / (1 - b2)).sqrt() + Decimal(group["eps"])
        M = Decimal(lr) / D
        y = Decimal(p) - M * Decimal(m) / (1 - b1)
        penalty = Decimal(eta) / Decimal(lr) * Decimal(group["weight_decay"])
        bound = abs(y) + 1
        return float(_minimum(lambda x: (x - y) ** 2 / (2 * M) + penalty * x * x / 2, -bound, bound))


@each_backend
@pytest.mark.parametrize("decouple_lr", [False, True])
@pytest.mark.parametrize("weight_decay", [0.3, 30.0])
def test_adamproxl2_matches_the_definition_of_the_prox(backend: str, decouple_lr: bool, weight_decay: float) -> None:
    """The first steps, with large bias corrections and an lr that a schedule changes."""
    p = values((4,), torch.float64, 1)
    opt = RECORDS["AdamProxL2"].make([p], lr=0.2, weight_decay=weight_decay, decouple_lr=decouple_lr, backend=backend)
    for t, lr in enumerate((0.2, 0.2, 0.05, 0.4), start=1):
        group = opt.param_groups[0]
        group["lr"] = lr
        before = p.tolist()
        p.grad = values((4,), torch.float64, 10 + t, scale=0.1)
        opt.step()
        moments = zip(opt.state[p]["exp_avg"].tolist(), opt.state[p]["exp_avg_sq"].tolist(), strict=True)
        eta = lr / 0.2 if decouple_lr else lr
        want = [_prox_step(x, m, v, t, lr, eta, group) for x, (m, v) in zip(before, moments, strict=True)]
        torch.testing.assert_close(p, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=1e-14)


@each_backend
def test_adamproxl2_shrinks_by_the_metric(backend: str) -> None:
    """Elementwise 1/(1 + lr*wd/D): coordinates with large gradients decay less, at every step."""
    p, g = torch.tensor([3.0, 3.0], dtype=torch.float64), torch.tensor([1.0, 100.0], dtype=torch.float64)
    opt = RECORDS["AdamProxL2"].make([p], lr=1.0, eps=0.0, weight_decay=1.0, backend=backend)
    for _ in range(3):
        want = (p - 1) / (1 + 1 / g)  # a constant gradient: the step without decay is lr, and D = |g|
        p.grad = g.clone()
        opt.step()
        torch.testing.assert_close(p, want)


@each_backend
@pytest.mark.parametrize("gate", ["none", "channel", "layer"])
def test_projected_proximal_decay(backend: str, gate: str) -> None:
    """AdamP(decay="proximal") takes the projected step, then divides by 1 + lr*wd*ratio."""
    p = values((12, 40), torch.float64, 1)
    plain, proximal = p.clone(), p.clone()
    for q, wd in ((plain, 0.0), (proximal, 3.0)):
        opt = RECORDS["AdamP"].make([q], lr=0.1, weight_decay=wd, wd_ratio=0.2, decay="proximal", backend=backend)
        q.grad = gradient(gate, p, 2)
        opt.step()
    ratio = 1.0 if gate == "none" else 0.2
    torch.testing.assert_close(proximal, plain / (1 + 0.1 * 3.0 * ratio))
