"""The gate of AdamP and SGDP: channel, layer or none, also for NaN, Inf, zeros and extreme numbers."""

from __future__ import annotations

import math

import pytest
import torch

from compare import assert_within
from records import RECORDS, Record, each_backend, each_projected
from steps import GATES, UNITS, check_first_step, first_step_of, optimizer_of, set_counter
from tensors import gradient, scaled_cosine, values

each_gate = pytest.mark.parametrize("gate", GATES)


# ------------------------------------------------------------------ the gate


@each_backend
@each_projected
@each_gate
@pytest.mark.parametrize("counter", range(4))
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_every_gate_under_every_prediction(
    backend: str, record: Record, gate: str, counter: int, decay: str, nesterov: bool
) -> None:
    p = values((12, 40), torch.float32, 1)
    opt = optimizer_of(record, p, backend, decay=decay, nesterov=nesterov, maximize=nesterov)
    set_counter(opt, p, counter)
    p.grad = gradient(gate, p, 2)
    assert check_first_step(opt, record, p) == gate


@each_backend
@each_projected
@each_gate
def test_last_step_has_cosine_and_norms(backend: str, record: Record, gate: str) -> None:
    """last_step() has the cosine and norms before the step, and is empty after a step without gradients."""
    p = values((12, 40), torch.float32, 1)
    opt = optimizer_of(record, p, backend)
    assert opt.last_step() == {}
    p.grad = gradient(gate, p, 2)
    want = scaled_cosine(p, p.grad), float(p.double().norm()), float(p.grad.double().norm())
    opt.step()
    verdict = opt.last_step()[p]
    assert (verdict.cosine, verdict.p_norm, verdict.g_norm) == pytest.approx(want, rel=1e-6, abs=1e-6)
    p.grad = None
    opt.step()
    assert opt.last_step() == {}


@each_backend
@each_projected
@pytest.mark.parametrize("shape", [(40, 9), (5, 1000), (3, 40000)])
@pytest.mark.parametrize("view", ["channel", "layer"])
def test_near_the_threshold(backend: str, record: Record, shape: tuple[int, int], view: str) -> None:
    """Sums are so accurate that a cosine 1e-5 below the threshold passes and one 1e-5 above does not."""
    p = values(shape, torch.float32, 1)
    p.grad = gradient("none" if view == "channel" else "layer", p, 2) + 0.01 * p
    if view == "channel":
        cosine = scaled_cosine(p, p.grad)
    else:
        cosine = scaled_cosine(p.reshape(1, -1), p.grad.reshape(1, -1))
    for factor, passes in ((1 + 1e-5, True), (1 - 1e-5, False)):
        q = p.clone()
        opt = optimizer_of(record, q, backend, delta=cosine * factor)
        q.grad = p.grad
        opt.step()
        assert (opt.last_step()[q].gate == view) == passes


@each_backend
@each_projected
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("rows", [1, 300])
def test_rows_of_one_element(backend: str, record: Record, dtype: torch.dtype, rows: int) -> None:
    """Their cosine is exactly 1: no row passes delta=1, every row passes the next larger delta."""
    for seed in range(1 if rows > 1 else 20):
        p, g = values((rows, 1), dtype, seed), values((rows, 1), dtype, 50 + seed)
        for delta, gate in ((1.0, "none"), (math.nextafter(1.0, 2.0), "channel")):
            q = p.clone()
            opt = optimizer_of(record, q, backend, delta=delta)
            q.grad = g
            opt.step()
            assert opt.last_step()[q].cosine == 1.0
            # 300 rows pass as a layer if they are near enough to orthogonal as a whole.
            as_layer = rows > 1 and scaled_cosine(p.reshape(1, -1), g.reshape(1, -1)) < delta
            assert opt.last_step()[q].gate == ("layer" if gate == "none" and as_layer else gate)


@each_backend
@each_projected
@pytest.mark.parametrize("shape", [(6,), (), (1,)])
def test_vectors_and_scalars_are_not_projected(backend: str, record: Record, shape: tuple[int, ...]) -> None:
    """No projection, no verdict, and the full decay, even with an orthogonal gradient."""
    p = values(shape, torch.float32, 1)
    opt = optimizer_of(record, p, backend, delta=1e9)
    p.grad = torch.zeros_like(p)
    want = first_step_of(opt, record, p)
    opt.step()
    assert_within(p, want.p, want.size, 2, "1-dimensional")
    assert opt.last_step() == {}
    assert "gate_counter" not in opt.state[p]


@each_backend
@each_projected
def test_threshold_is_strict(backend: str, record: Record) -> None:
    """cos < delta/sqrt(D): a cosine of 0 does not pass a delta of 0."""
    p = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    opt = optimizer_of(record, p, backend, delta=0.0)
    p.grad = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert check_first_step(opt, record, p) == "none"
    assert opt.last_step()[p].cosine == 0


@each_backend
@each_projected
def test_largest_cosine_decides_the_gate(backend: str, record: Record) -> None:
    """One row that fails the threshold closes the gate for 99 that pass."""
    p = values((100, 50), torch.float32, 1)
    p.grad = gradient("channel", p, 2)
    p.grad[57] += 10 * p[57]
    opt = optimizer_of(record, p, backend, delta=2.0)
    assert check_first_step(opt, record, p) == "none"


# ------------------------------------------------------------------ NaN, Inf, zeros, extremes


@each_backend
@each_projected
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "parameter"])
@pytest.mark.parametrize("counter", [0, 3])
def test_nonfinite_numbers_close_the_gate(backend: str, record: Record, bad: float, where: str, counter: int) -> None:
    """A NaN or Inf anywhere closes the gate; all other elements take their usual step."""
    p = values((30, 20), torch.float32, 1)
    p.grad = gradient("channel", p, 2)
    (p.grad if where == "gradient" else p)[7, 3] = bad
    opt = optimizer_of(record, p, backend, delta=100.0)
    set_counter(opt, p, counter)
    clean = torch.ones(p.shape, dtype=torch.bool)
    clean[7, 3] = False
    want = first_step_of(opt, record, p)
    opt.step()
    verdict = opt.last_step()[p]
    assert (verdict.gate, math.isnan(verdict.cosine)) == ("none", True)
    numbers = clean.numpy()
    assert_within(p[clean], want.p[numbers], want.size[numbers], UNITS, "the other elements")
    assert not p[7, 3].isfinite()


@each_backend
@each_projected
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("shape", [(5, 20), (1, 1), (1, 30), (30, 1)])
def test_zero_gradient(backend: str, record: Record, eps: float, shape: tuple[int, int]) -> None:
    """The cosine is 0, so the tensor is projected and decays by wd_ratio*wd."""
    p = values(shape, torch.float32, 1)
    start = p.double()
    opt = optimizer_of(record, p, backend, eps=eps)
    p.grad = torch.zeros_like(p)
    opt.step()
    group = opt.param_groups[0]
    q = group["lr"] * group["weight_decay"] * group["wd_ratio"] / (1 - group.get("momentum", 0))
    assert opt.last_step()[p].gate == "channel"
    assert_within(p, (1 - q) * start, start.abs(), 2, "decayed")


@each_backend
@each_projected
@pytest.mark.parametrize("eps", [0.0, 1e-8])
@pytest.mark.parametrize("counter", [0, 3])
def test_zero_parameter(backend: str, record: Record, eps: float, counter: int) -> None:
    """A row of zeros has c = 0 (0/0 := 0)."""
    p = torch.zeros(6, 10)
    p[3] = 1.0
    p.grad = values(p.shape, torch.float32, 2)
    p.grad[3] = 0
    opt = optimizer_of(record, p, backend, eps=eps)
    set_counter(opt, p, counter)
    assert check_first_step(opt, record, p) == "channel"
    assert p.isfinite().all()


@each_backend
@each_projected
@pytest.mark.parametrize(("p_scale", "g_scale"), [(1e-2, 1e3), (1e3, 1e-2)])
def test_eps_bounds_norms_from_below(backend: str, record: Record, p_scale: float, g_scale: float) -> None:
    """An eps above a norm makes the cosine small; the projection adds it to |p|."""
    p = p_scale * values((4, 9), torch.float32, 1)
    opt = optimizer_of(record, p, backend, eps=10.0)
    p.grad = g_scale / p_scale * p
    assert check_first_step(opt, record, p) == "channel"


@each_backend
@each_projected
@each_gate
@pytest.mark.parametrize("counter", [0, 3])
@pytest.mark.parametrize("decay", ["decoupled", "proximal"])
@pytest.mark.parametrize(("scale", "lr", "wd"), [(1e-6, None, None), (1.0, 30.0, 0.5), (1e-3, 5.0, 4.0)])
def test_unrecoverable_steps(
    backend: str,
    record: Record,
    gate: str,
    counter: int,
    decay: str,
    scale: float,
    lr: float | None,
    wd: float | None,
) -> None:
    """Tiny p, huge lr, decay near 1: p cannot be recovered from p', and the step is still accurate."""
    p = scale * values((12, 40), torch.float32, 1)
    changed = {} if lr is None else {"lr": lr, "weight_decay": wd}
    opt = optimizer_of(record, p, backend, decay=decay, **changed)
    set_counter(opt, p, counter)
    p.grad = gradient(gate, p / scale, 2)
    assert check_first_step(opt, record, p) == gate


@each_backend
@pytest.mark.parametrize("lr_wd", [0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0])
@each_gate
def test_decay_around_the_recovery_limit(backend: str, lr_wd: float, gate: str) -> None:
    """|1 - d| on both sides of 1/2, and 0, where p' does not depend on p."""
    record = RECORDS["AdamP"]
    p = values((12, 40), torch.float32, 1)
    opt = optimizer_of(record, p, backend, lr=0.1, weight_decay=10 * lr_wd, wd_ratio=1.0)
    p.grad = gradient(gate, p, 2)
    assert check_first_step(opt, record, p) == gate
