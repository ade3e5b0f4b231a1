"""Launches and uploads of the Triton backend: a fixed number of kernels, and tables only on changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from onepass.triton_kernels import launch, plan
from torch import Tensor

import onepass
from compare import assert_same_bits, assert_same_state
from drive import parameters, parameters_of, train, train_both
from onepass.backend.triton.backend import TritonBackend
from oracles import Arguments
from records import RECORDS, Record, each_dtype, each_optimizer, each_projected, each_variant
from tensors import generator, gradient, values

each_count = pytest.mark.parametrize("count", [1, 10, 1500])
SIXTEEN_BITS = (torch.bfloat16, torch.float16)


def backend_of(opt: Any) -> TritonBackend:
    (bound,) = opt._execution.backends
    assert isinstance(bound, TritonBackend)
    return bound


def many(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Small tensors; every third is a matrix."""
    noise = torch.randn(count, 6, generator=generator(count), dtype=torch.float64).to(dtype)
    return [row.reshape(2, 3).clone() if i % 3 == 0 else row.clone() for i, row in enumerate(noise)]


def give(opt: Any, seed: int) -> None:
    """Refills existing gradients in place, and creates missing ones."""
    for i, p in enumerate(parameters_of(opt)):
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(values(p.shape, p.dtype, seed + i))


def launched(opt: Any, seed: int = 1) -> list[str]:
    give(opt, seed)
    opt.step()
    return backend_of(opt).launches


def make(record: Record, count: int, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    return record.make(many(count, dtype), backend="triton", **{**record.typical, **arguments})


def kernels_of(record: Record, dtype: torch.dtype = torch.float32, vectors: bool = True, **arguments: Any) -> list[str]:
    if not record.projected:
        return ["step"]
    unpredicted = (
        dtype in SIXTEEN_BITS or not arguments.get("speculate", True) or arguments.get("project_momentum", False)
    )
    return ["gate_stats", "decide"] * unpredicted + ["step"] * vectors + ["update", "decide", "correct"]


# ------------------------------------------------------------------ number of launches


@each_count
@each_optimizer
def test_the_launches_do_not_depend_on_the_number_of_tensors(record: Record, count: int) -> None:
    opt = make(record, count)
    for seed in range(2):
        assert launched(opt, seed) == kernels_of(record, vectors=count > 1)


@each_dtype
@each_projected
@pytest.mark.parametrize("speculate", [True, False])
def test_gate_stats_without_speculation(dtype: torch.dtype, record: Record, speculate: bool) -> None:
    opt = make(record, 10, dtype, speculate=speculate)
    assert launched(opt) == kernels_of(record, dtype, speculate=speculate)


def test_gate_stats_for_project_momentum() -> None:
    opt = make(RECORDS["SGDP"], 10, project_momentum=True)
    assert launched(opt) == kernels_of(RECORDS["SGDP"], project_momentum=True)


@each_projected
def test_vectors_need_no_gate(record: Record) -> None:
    opt = record.make([torch.ones(7), torch.ones(9)], backend="triton", **record.typical)
    assert launched(opt) == ["step"]


def test_one_launch_of_each_kernel_for_every_dtype() -> None:
    record = RECORDS["AdamP"]
    params = [p for dtype in (torch.float32, torch.float64) for p in many(6, dtype)]
    opt = record.make(params, backend="triton", **record.typical)
    assert sorted(launched(opt)) == ["correct", "correct", "decide", "step", "step", "update", "update"]


@each_optimizer
def test_nothing_to_step(record: Record) -> None:
    opt = record.make([torch.zeros(0), torch.zeros(0, 4), torch.ones(3)], backend="triton", **record.typical)
    opt.step()
    assert backend_of(opt).launches == []
    for p in parameters_of(opt)[:2]:
        p.grad = torch.zeros_like(p)
    opt.step()
    assert backend_of(opt).launches == []


@pytest.mark.parametrize("most", [1, 4, 5])
def test_few_programs_correct_every_tile(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row each, after a wrong prediction: they take the tiles in turn."""
    record = RECORDS["AdamP"]
    shapes = [(9, 20), (7, 90)]
    opt, other = (
        record.make([values(shape, torch.float32, 1) for shape in shapes], backend="triton", **record.typical)
        for _ in range(2)
    )
    monkeypatch.setattr(plan, "interpreted_rows", lambda config, buckets: 1)
    for each in (opt, other):
        for p in parameters_of(each):
            p.grad = gradient("channel", p, 2)
        each.step()
        assert all(verdict.corrected for verdict in each.last_step().values())
        assert [x.programs for x in backend_of(each).tables.sent.plan.launches] == [9, 7]  # one row each, of two widths
        monkeypatch.setattr(launch, "CORRECTING", most)
    assert_same_state(opt, other)


# ------------------------------------------------------------------ tables


@each_optimizer
def test_addresses_are_uploaded_only_on_change(record: Record) -> None:
    opt = make(record, 10)
    launched(opt)
    launched(opt)  # the second step of SGD differs: its buffer is no longer unstepped
    sent = backend_of(opt).tables.sent.tensors
    launched(opt)
    assert backend_of(opt).tables.sent.tensors is sent
    p = parameters_of(opt)[3]
    p.grad = p.grad.clone()
    launched(opt)
    assert backend_of(opt).tables.sent.tensors is not sent


@each_optimizer
def test_plan_survives_new_addresses_and_hyper_parameters(record: Record) -> None:
    opt = make(record, 10)
    launched(opt)
    launched(opt)
    plan = backend_of(opt).tables.sent.plan
    opt.param_groups[0]["lr"] = 0.3
    for p in parameters_of(opt):
        p.grad = p.grad.clone()
    launched(opt)
    assert backend_of(opt).tables.sent.plan is plan


@each_projected
def test_intermittent_gradients(record: Record) -> None:
    """A gradient returns at its old address: the table must record that the tensor was not stepped in between."""
    opt, other = make(record, 6), record.make(many(6), backend="reference", **record.typical)
    buffers = [torch.empty_like(p) for p in parameters_of(opt)]
    for seed, there in enumerate([True, True, False, True, False, False, True]):
        for each in (opt, other):
            for i, p in enumerate(parameters_of(each)):
                p.grad = buffers[i] if there or i % 2 else None
                buffers[i].copy_(values(p.shape, p.dtype, seed + i))
            each.step()
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_bucket_is_split_when_step_counts_differ() -> None:
    """A bucket is split when the step counts of its tensors differ, since its scalars hold for each of them."""
    record = RECORDS["AdamW"]
    opt, other = make(record, 9), record.make(many(9), backend="reference", **record.typical)
    for each in (opt, other):
        for seed in range(5):
            give(each, seed)
            for p in parameters_of(each)[: seed % 3]:
                p.grad = None
            each.step()
    assert len({e.bucket for e in backend_of(opt).bound}) > 1
    assert_same_state(opt, other)


# ------------------------------------------------------------------ capturable


def _live(arguments: Arguments) -> Arguments:
    """`arguments` with device tensors for the hyper-parameters that may be tensors in a capturable group."""
    out = dict(arguments)
    for name in ("lr", "weight_decay", "momentum"):
        if name in out:
            out[name] = torch.tensor(out[name], dtype=torch.float64)
    if "betas" in out:
        out["betas"] = tuple(torch.tensor(beta, dtype=torch.float64) for beta in out["betas"])
    return out


@each_variant
@pytest.mark.parametrize("live", [False, True], ids=["numbers", "tensors"])
def test_capturable_gives_the_same_numbers(record: Record, arguments: Arguments, live: bool) -> None:
    if live and record.name == "SGD" and arguments.get("momentum", 0) == 0:
        pytest.skip("a momentum that only the device knows is taken to be above 0")
    own = _live(arguments) if live else arguments
    opt = record.make(parameters(), backend="triton", capturable=True, **own)
    other = record.make(parameters(), backend="triton", **arguments)
    train_both(opt, other, range(4))
    assert ("device_scalars" in backend_of(opt).launches) and ("device_scalars" not in backend_of(other).launches)
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        # Two doubles that differ in the last place may round to different float32.
        torch.testing.assert_close(p, q, rtol=3e-7, atol=3e-7)
        if "step" in other.state.get(q, {}):
            assert_same_bits(opt.state[p]["step"], other.state[q]["step"], "step")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_hyper_parameters_are_read_at_every_step(dtype: torch.dtype) -> None:
    lr = torch.tensor(0.1, dtype=dtype)
    record = RECORDS["AdamP"]
    arguments = {**record.typical, "decouple_lr": True}
    opt = record.make(parameters(), backend="triton", capturable=True, **{**arguments, "lr": lr})
    other = record.make(parameters(), backend="triton", **{**arguments, "lr": float(lr)})
    for time in range(4):
        train_both(opt, other, [time])
        lr.mul_(0.5)
        other.param_groups[0]["lr"] = float(lr)
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_device_counted_steps_continue() -> None:
    record = RECORDS["AdamW"]
    opt = train(record.make(parameters(), backend="triton", capturable=True, **record.typical), range(3))
    other = train(record.make(parameters(), backend="triton", **record.typical), range(3))
    twin = copy.deepcopy(opt)
    for each in (opt, other, twin):
        for own in each.state.values():
            own["step"].fill_(1000.0)
        train(each, [3])
        assert all(float(own["step"]) == 1001 for own in each.state.values())
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        torch.testing.assert_close(p, q, rtol=3e-7, atol=3e-7)


def test_a_negated_gradient() -> None:
    """torch has lazily negated tensors, e.g. the imaginary part of a conjugate."""
    for capturable in (False, True):
        record = RECORDS["AdamP"]
        opt = record.make(parameters(), backend="triton", capturable=capturable, **record.typical)
        other = record.make(parameters(), backend="triton", capturable=capturable, **record.typical)
        for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
            g = values(p.shape, torch.float32, 5)
            p.grad = torch._neg_view(-g)
            assert p.grad.is_neg()
            q.grad = g
        opt.step()
        other.step()
        assert_same_state(opt, other)


# ------------------------------------------------------------------ devices


def test_other_devices_are_refused() -> None:
    p = torch.zeros(3, device="meta")
    p.grad = torch.zeros_like(p)
    with pytest.raises(
        ValueError, match="backend='triton' steps CUDA and ROCm tensors, or CPU tensors where TRITON_INTERPRET=1"
    ):
        onepass.AdamW([p], backend="triton").step()
