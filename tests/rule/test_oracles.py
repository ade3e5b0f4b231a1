"""Agreement with the optimizers of torch, of the adamp package and of timm, over several steps."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from drive import KINDS, gradient_at, parameters, parameters_of, train, train_both
from oracles import Arguments, Oracle, sign_of, timm_factory
from paths import BENCH
from records import FACTORY_OF_TIMM, RECORDS, Record, each_backend, each_oracle, each_projected

STEPS = 12


def _pair(backend: str, record: Record, arguments: Arguments, oracle: Oracle, dtype: torch.dtype) -> tuple[Any, Any]:
    ours = record.make(parameters(dtype), backend=backend, **arguments)
    return ours, oracle.make(parameters(dtype), arguments)


def _assert_close(ours: Any, theirs: Any, record: Record, tolerance: float) -> None:
    """Finite elements agree within `tolerance`; NaN and Inf count as equal."""

    def close(a: Tensor, b: Tensor) -> None:
        a, b = (torch.where(t.isfinite(), t, math.nan) for t in (a, b))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)

    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        close(p.detach(), q.detach())
        for key in record.moments:
            moment = theirs.state[q].get(key)
            # The adamp package's buffer has no effect without momentum.
            if moment is not None and ours.param_groups[0].get("momentum") != 0:
                close(ours.state[p][key], moment)


@each_backend
@each_oracle
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["float64", "float32"]
)
def test_matches_the_oracle(
    backend: str, record: Record, arguments: Arguments, oracle: Oracle, dtype: torch.dtype, tolerance: float
) -> None:
    """Both get the same gradients, of normal size, so that an update is as well conditioned as its gradient."""
    ours, theirs = _pair(backend, record, arguments, oracle, dtype)
    train_both(ours, theirs, range(STEPS), sign_of(arguments, oracle))
    _assert_close(ours, theirs, record, tolerance)
    for p, start in zip(parameters_of(ours), parameters(dtype), strict=True):
        assert not torch.equal(p, start)


@each_backend
@each_oracle
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nonfinite_gradients_match_the_oracle(
    backend: str, record: Record, arguments: Arguments, oracle: Oracle, bad: float
) -> None:
    """NaN and Inf act as in the oracle, at that step and at the next."""
    ours, theirs = _pair(backend, record, arguments, oracle, torch.float64)
    sign = sign_of(arguments, oracle)
    train_both(ours, theirs, range(2), sign)
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        p.grad = gradient_at(p, 2)
        p.grad.view(-1)[p.numel() // 2] = bad
        q.grad = sign * p.grad
    ours.step()
    theirs.step()
    _assert_close(ours, theirs, record, 1e-12)
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        p.grad = torch.ones_like(p)
        q.grad = sign * p.grad
    ours.step()
    theirs.step()
    _assert_close(ours, theirs, record, 1e-12)


@each_projected
def test_training_run_takes_every_gate(record: Record) -> None:
    """The comparisons above cover projected and unprojected steps."""
    opt = record.make(parameters(), backend="reference", **record.typical)
    seen = set()
    for time in range(STEPS):
        train(opt, [time])
        seen |= {verdict.gate for verdict in opt.last_step().values()}
    assert seen == set(KINDS)


def test_list_of_oracles() -> None:
    assert {(record.name, oracle.name) for record in RECORDS.values() for oracle in record.oracles} == {
        ("Adam", "torch"), ("AdamW", "torch"), ("SGD", "torch"), ("AdamP", "adamp"), ("AdamP", "timm"),
        ("SGDP", "adamp"), ("SGDP", "timm"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["AdamP", "SGDP"])
def test_arguments_of_timm_factory(name: str) -> None:
    """The variant "as_timm" and the bench have the arguments of timm's source, and timm's class is the oracle."""
    sys.path.append(str(BENCH))
    import timm_alone

    own, arguments = FACTORY_OF_TIMM[name.lower()], RECORDS[name].variants["as_timm"]
    assert timm_factory(name.lower()) == own == {"AdamP": timm_alone.ADAMP, "SGDP": timm_alone.SGDP}[name]
    assert own.items() <= arguments.items()
    (timm,) = (oracle for oracle in RECORDS[name].oracles if oracle.name == "timm")
    assert timm.translate(arguments) == arguments
