"""What AdamP and SGDP project, and the predictor that lets them do it in one pass."""

from __future__ import annotations

import itertools

import pytest
import torch

from compare import assert_same_bits
from records import RECORDS, Record, each_backend, each_compiled, each_projected
from steps import GATES, optimizer_of, set_counter
from tensors import gradient, rows_of, scaled_cosine, values

each_gate = pytest.mark.parametrize("gate", GATES)


# ------------------------------------------------------------------ what is projected


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
def test_channel_is_dim_0_whatever_the_strides(backend: str, record: Record) -> None:
    """Rows are those of the shape. A transposed weight whose columns would pass and whose rows do not."""
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


# ------------------------------------------------------------------ the predictor


@each_compiled
@each_projected
def test_counter_and_settling(backend: str, record: Record) -> None:
    """Saturates at 0 and 3, goes up at "channel" only, and predicts "channel" from 2."""
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
def test_two_visits_do_not_depend_on_the_predictor(backend: str, record: Record, gate: str) -> None:
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
def test_16_bit_is_never_corrected(backend: str, record: Record, dtype: torch.dtype) -> None:
    """A 16-bit p' has not the digits that settling needs, so the gate is found out first."""
    for gate, counter in itertools.product(GATES, (0, 3)):
        p = values((12, 40), dtype, 1)
        opt = optimizer_of(record, p, backend)
        set_counter(opt, p, counter)
        p.grad = gradient(gate, p, 2)
        opt.step()
        assert (opt.last_step()[p].gate, opt.last_step()[p].corrected) == (gate, False)


@each_compiled
@each_projected
def test_right_prediction_of_none_gives_the_bits_of_the_reference(backend: str, record: Record) -> None:
    """Without projection no sum enters the step."""
    p, q = (values((12, 40), torch.float32, 1) for _ in range(2))
    opt, reference = optimizer_of(record, p, backend), optimizer_of(record, q, "reference")
    for seed in range(3):
        p.grad = gradient("none", q, seed)
        q.grad = p.grad.clone()
        opt.step()
        reference.step()
        assert not opt.last_step()[p].corrected
        assert_same_bits(p, q, "never projected")
