"""Checkpoint exchange with torch.optim, timm and the adamp package, in both directions."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from compare import assert_same_bits
from drive import parameters, parameters_of, through_a_file, train, train_both
from oracles import ADAMP, SGDP, Arguments, Oracle, sign_of
from records import RECORDS, Record, each_backend, each_oracle

# The adamp package computes 1 - b2^t in float32, the dtype of our step count: a measured error of 5e-6 after 8 steps.
TOLERANCE = {"torch": 1e-6, "adamp": 1e-4, "timm": 1e-4}


def _assert_close(ours: Any, theirs: Any, tolerance: float) -> None:
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)


@each_backend
@each_oracle
def test_load_foreign_state_dict(backend: str, record: Record, arguments: Arguments, oracle: Oracle) -> None:
    sign = sign_of(arguments, oracle)
    theirs = train(oracle.make(parameters(torch.float64), arguments), range(4), sign)
    params = [p.detach().clone().requires_grad_() for p in parameters_of(theirs)]
    ours = record.make(params, backend=backend, **arguments)
    ours.load_state_dict(through_a_file(theirs.state_dict()))
    # A checkpoint brings its weight decay and the decay's convention.
    assert ours.param_groups[0]["decouple_lr"] is False
    train_both(ours, theirs, range(4, 8), sign)
    _assert_close(ours, theirs, 1e-12)


def test_options_missing_from_a_foreign_checkpoint_are_kept() -> None:
    """Each group keeps its own values, not the defaults."""
    groups = [
        {"params": [p], "decay": decay} for p, decay in zip(parameters()[:2], ("proximal", "decoupled"), strict=True)
    ]
    ours = RECORDS["AdamP"].make(groups, maximize=True)
    theirs = ADAMP[0].make([{"params": [p]} for p in parameters()[:2]], dict(lr=0.5))
    ours.load_state_dict(theirs.state_dict())
    got = [(group["lr"], group["decay"], group["maximize"]) for group in ours.param_groups]
    assert got == [(0.5, "proximal", True), (0.5, "decoupled", True)]


@each_backend
@each_oracle
def test_foreign_optimizer_loads_our_state_dict(
    backend: str, record: Record, arguments: Arguments, oracle: Oracle
) -> None:
    sign = sign_of(arguments, oracle)
    ours = train(record.make(parameters(torch.float64), backend=backend, **arguments), range(4))
    params = [p.detach().clone().requires_grad_() for p in parameters_of(ours)]
    theirs = oracle.make(params, arguments)
    saved = through_a_file(ours.state_dict())
    if arguments.get("decouple_lr"):
        saved["param_groups"][0]["weight_decay"] = theirs.param_groups[0]["weight_decay"]
    theirs.load_state_dict(saved)
    train_both(ours, theirs, range(4, 8), sign)
    _assert_close(ours, theirs, TOLERANCE[oracle.name])


@each_backend
@each_oracle
def test_foreign_state_dict_round_trip(backend: str, record: Record, arguments: Arguments, oracle: Oracle) -> None:
    """Their load_state_dict casts unknown entries to the parameters' dtype; ours restores the dtypes."""
    ours = train(record.make(parameters(), backend=backend, **arguments), range(4))
    theirs = oracle.make(parameters(), arguments)
    theirs.load_state_dict(ours.state_dict())
    back = record.make([p.detach().clone() for p in parameters_of(ours)], backend=backend, **arguments)
    back.load_state_dict(through_a_file(theirs.state_dict()))
    train(back, [4])
    train(ours, [4])
    _assert_close(back, ours, 1e-6)
    for p, q in zip(parameters_of(ours), parameters_of(back), strict=True):
        assert {k: v.dtype for k, v in ours.state[p].items()} == {k: v.dtype for k, v in back.state[q].items()}


@each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_moments_of_torch_become_float32(backend: str, dtype: torch.dtype) -> None:
    theirs = train(torch.optim.AdamW(parameters(dtype)), range(3))
    ours = RECORDS["AdamW"].make([p.detach().clone() for p in parameters_of(theirs)], backend=backend)
    ours.load_state_dict(theirs.state_dict())
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            assert ours.state[p][key].dtype == torch.float32
            assert_same_bits(ours.state[p][key], theirs.state[q][key].float(), key)
    train(ours, [3])


@each_backend
def test_foreign_checkpoint_resets_the_predictor(backend: str) -> None:
    for name, (oracle, *_) in {"AdamP": ADAMP, "SGDP": SGDP}.items():
        theirs = train(oracle.make(parameters(), {"lr": 1e-3}), range(3))
        ours = RECORDS[name].make(parameters(), lr=1e-3, backend=backend)
        ours.load_state_dict(theirs.state_dict())
        assert all("gate_counter" not in own for own in ours.state.values())
        train(ours, [3])
        assert all("gate_counter" in ours.state[p] for p in parameters_of(ours) if p.dim() > 1)


@each_backend
def test_momentum_buffer_missing_from_a_checkpoint(backend: str) -> None:
    """torch.optim.SGD without momentum saves no buffer, or None; the first step with momentum makes one."""
    for buffer in ({}, {"momentum_buffer": None}):
        ours = RECORDS["SGD"].make(parameters(), lr=0.1, momentum=0.9, dampening=0.5, backend=backend)
        theirs = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9, dampening=0.5)
        saved = theirs.state_dict()
        saved["state"] = {i: dict(buffer) for i in range(len(parameters_of(ours)))} if buffer else {}
        ours.load_state_dict(saved)
        train_both(ours, theirs, range(3))
        _assert_close(ours, theirs, 1e-6)
