"""The projection of AdamP and SGDP, fixed gates, and speculation on the gate."""

from __future__ import annotations

import itertools

import pytest
import torch

from compare import assert_same_bits
from records import RECORDS, Record, each_backend, each_compiled, each_projected
from steps import GATES, check_first_step, optimizer_of, set_counter
from tensors import gradient, rows_of, scaled_cosine, values

each_gate = pytest.mark.parametrize("gate", GATES)


# ------------------------------------------------------------------ the projection


@each_backend
@each_projected
@pytest.mark.parametrize("gate", ["channel", "layer"])
def test_update_is_orthogonal_to_the_weight(backend: str, record: Record, gate: str) -> None:
    p = values((12, 40), torch.float32, 1)
    start = p.double()
    opt = optimizer_of(record, p, backend, weight_decay=0, eps=1e-12)
    p.grad = gradient(gate, p, 2)
    opt.step()
    rows = 12 if gate == "channel" else 1
    moved = (p.double() - start).reshape(rows, -1)
    radial = (moved * start.reshape(rows, -1)).sum(1) / start.reshape(rows, -1).norm(dim=1)
    assert float((radial.abs() / moved.norm(dim=1)).max()) < 1e-5


@each_backend
def test_project_momentum_projects_the_buffer(backend: str) -> None:
    for gate, project, nesterov in itertools.product(GATES, (False, True), (False, True)):
        p = values((12, 40), torch.float32, 1)
        start = p.clone()
        opt = optimizer_of(RECORDS["SGDP"], p, backend, project_momentum=project, nesterov=nesterov)
        opt.state[p]["momentum"] = values(p.shape, torch.float32, 3)
        plain = 0.8 * opt.state[p]["momentum"] + gradient(gate, p, 2)
        p.grad = gradient(gate, p, 2)
        opt.step()
        buffer = opt.state[p]["momentum"]
        if not project or nesterov or gate == "none":
            torch.testing.assert_close(buffer, plain, rtol=1e-6, atol=1e-6)
        else:
            rows = 12 if gate == "channel" else 1
            radial = (buffer * start).double().reshape(rows, -1).sum(1)
            assert float(radial.abs().max()) < 1e-4
            assert not torch.allclose(buffer, plain)


@each_backend
@each_projected
def test_rows_follow_dim_0_not_strides(backend: str, record: Record) -> None:
    """A transposed weight whose columns, but not rows, are orthogonal to their gradients takes the gate layer."""
    p = values((8, 8), torch.float32, 1)
    columns = gradient("channel", p.T.contiguous(), 2).T
    aligned = columns + 0  # orthogonal column by column, not row by row
    assert scaled_cosine(p, aligned) > 1
    q = p.T.contiguous().T
    q.grad = aligned
    opt = optimizer_of(record, q, backend)
    opt.step()
    assert opt.last_step()[q].gate == "layer"
    assert (rows_of(p) * rows_of(aligned)).sum().abs() < 1e-4


# ------------------------------------------------------------------ projection="channel", "layer" and "none"

# Cached rows, rows cut into pieces, and rows of a few elements.
SHAPES = [(12, 40), (2, 40_000), (70, 3)]


@each_backend
@each_projected
@pytest.mark.parametrize("fixed", GATES)
@pytest.mark.parametrize("gate", GATES)
def test_fixed_gate(backend: str, record: Record, fixed: str, gate: str) -> None:
    """A fixed gate overrides cosine and prediction, and is never corrected."""
    for shape, counter, decay in zip(SHAPES, (0, 3, 2), ("decoupled", "proximal", "decoupled"), strict=True):
        p = values(shape, torch.float32, 1)
        p.grad = gradient(gate, p, 2)
        opt = optimizer_of(record, p, backend, projection=fixed, decay=decay)
        set_counter(opt, p, counter)
        assert check_first_step(opt, record, p) == fixed
        assert not opt.last_step()[p].corrected


@each_backend
@each_projected
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_fixed_gate_in_other_dtypes(backend: str, record: Record, dtype: torch.dtype) -> None:
    """Same bits as an optimizer whose cosine decides for the same gate."""
    for fixed in GATES:
        p, q = (values((12, 40), dtype, 1) for _ in range(2))
        p.grad, q.grad = gradient(fixed, p, 2), gradient(fixed, q, 2)
        opt = optimizer_of(record, p, backend, projection=fixed)
        other = optimizer_of(record, q, backend, speculate=False)
        opt.step()
        other.step()
        assert opt.last_step()[p].gate == other.last_step()[q].gate == fixed
        assert_same_bits(p, q, fixed)


@each_backend
def test_projection_is_per_group(backend: str) -> None:
    params = [values((12, 40), torch.float32, i) for i in range(4)]
    groups = [
        {"params": [p], "projection": x} for p, x in zip(params, ("layer", "auto", "none", "channel"), strict=True)
    ]
    opt = RECORDS["AdamP"].make(groups, backend=backend, lr=0.1)
    for gate in ("channel", "none"):
        for p in params:
            p.grad = gradient(gate, p, 5)
        opt.step()
        assert [verdict.gate for verdict in opt.last_step().values()] == ["layer", gate, "none", "channel"]
    opt.param_groups[0]["projection"] = "auto"
    for p in params:
        p.grad = gradient("channel", p, 6)
    opt.step()
    assert [verdict.gate for verdict in opt.last_step().values()] == ["channel", "channel", "none", "channel"]


@each_backend
@pytest.mark.parametrize("decay", [0.0, 30.0])
def test_fixed_gate_projects_the_buffer(backend: str, decay: float) -> None:
    """Also where p cannot be recovered and the row is deferred."""
    for fixed in GATES:
        p, q = (values((12, 40), torch.float32, 1) for _ in range(2))
        ours = optimizer_of(RECORDS["SGDP"], p, backend, projection=fixed, project_momentum=True, weight_decay=decay)
        model = optimizer_of(
            RECORDS["SGDP"], q, "reference", projection=fixed, project_momentum=True, weight_decay=decay
        )
        for seed in range(3):
            p.grad, q.grad = gradient("none", q, seed), gradient("none", q, seed)
            ours.step()
            model.step()
            scale = float(q.abs().max())
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6 * scale)
            torch.testing.assert_close(ours.state[p]["momentum"], model.state[q]["momentum"], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------ speculation


@each_compiled
@each_projected
def test_gate_counter_and_correction(backend: str, record: Record) -> None:
    """The counter saturates at 0 and 3, rises at "channel" only, and predicts "channel" from 2."""
    p = values((12, 40), torch.float32, 1)
    opt = optimizer_of(record, p, backend)
    taken = [
        "channel",
        "channel",
        "channel",
        "channel",
        "layer",
        "none",
        "channel",
        "none",
        "none",
        "none",
        "layer",
        "channel",
    ]
    counter, counters = 1, []
    for seed, gate in enumerate(taken):
        predicted = "channel" if counter >= 2 else "none"
        p.grad = gradient(gate, p, seed)
        opt.step()
        verdict = opt.last_step()[p]
        assert (verdict.gate, verdict.corrected) == (gate, gate != predicted)
        counter = min(counter + 1, 3) if gate == "channel" else max(counter - 1, 0)
        counters.append(counter)
        assert int(opt.state[p]["gate_counter"]) == counter
    assert {0, 3} <= set(counters)


@each_backend
@each_projected
@each_gate
def test_gate_counter_has_no_effect_without_speculation(backend: str, record: Record, gate: str) -> None:
    results = []
    for counter in range(4):
        p = values((33, 1025), torch.float32, 1)
        opt = optimizer_of(record, p, backend, speculate=False)
        set_counter(opt, p, counter)
        for seed in range(2):
            p.grad = gradient(gate, p, seed)
            opt.step()
            assert not opt.last_step()[p].corrected
        results.append(p)
    for p in results[1:]:
        assert_same_bits(p, results[0], "under another counter")


@each_compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_projected
def test_16_bit_tensors_are_never_corrected(backend: str, record: Record, dtype: torch.dtype) -> None:
    """A 16-bit p' is too inaccurate for the correction, so the gate is decided first."""
    for gate, counter in itertools.product(GATES, (0, 3)):
        p = values((12, 40), dtype, 1)
        opt = optimizer_of(record, p, backend)
        set_counter(opt, p, counter)
        p.grad = gradient(gate, p, 2)
        opt.step()
        assert (opt.last_step()[p].gate, opt.last_step()[p].corrected) == (gate, False)


@each_compiled
@each_projected
@each_gate
def test_decay_of_one(backend: str, record: Record, gate: str) -> None:
    """p cannot be recovered from p' = -s*u, so rows are deferred until the gate is known."""
    lr = 0.5 if record.name == "AdamP" else 0.1  # SGDP divides the decay by 1 - momentum, 0.2
    for counter in (0, 3):
        p = values((12, 40), torch.float32, 1)
        p.grad = gradient(gate, p, 2)
        opt = optimizer_of(record, p, backend, lr=lr, weight_decay=2.0, wd_ratio=0.1)
        set_counter(opt, p, counter)
        assert check_first_step(opt, record, p) == gate


@each_compiled
@each_projected
def test_right_prediction_of_none_gives_reference_bits(backend: str, record: Record) -> None:
    """No row sum enters an unprojected step."""
    p, q = (values((12, 40), torch.float32, 1) for _ in range(2))
    opt, reference = optimizer_of(record, p, backend), optimizer_of(record, q, "reference")
    for seed in range(3):
        p.grad = gradient("none", q, seed)
        q.grad = p.grad.clone()
        opt.step()
        reference.step()
        assert not opt.last_step()[p].corrected
        assert_same_bits(p, q, "never projected")
