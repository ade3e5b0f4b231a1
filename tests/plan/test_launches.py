"""Launches of the CUDA backend: a fixed number of kernels for any number of tensors, and no uploads in a steady state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import parameters_of
from emulated_backend import emulated, plan_of
from oracles import Arguments
from records import RECORDS, Record, each_dtype, each_optimizer, each_projected
from tensors import generator

MOST_BY_VALUE = emulated.limits["gradients"]
CHUNK = emulated.limits["words"]
COUNTS = [1, 10, 1500, 5000]
each_count = pytest.mark.parametrize("count", COUNTS)


@pytest.fixture(autouse=True)
def forget_errors() -> Iterator[None]:
    yield
    emulated.reset()


def test_counts_lie_on_both_sides_of_every_limit() -> None:
    assert 10 < MOST_BY_VALUE < 1500 < CHUNK < 5000


def many(count: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Small tensors; every third is a matrix."""
    noise = torch.randn(count, 6, generator=generator(count), dtype=torch.float64).to(dtype)
    return [row.reshape(2, 3).clone() if i % 3 == 0 else row.clone() for i, row in enumerate(noise)]


def give(opt: Any, seed: int) -> None:
    """Refills existing gradients in place, and creates missing ones."""
    params = parameters_of(opt)
    noise = torch.randn(len(params), 6, generator=generator(seed), dtype=torch.float64)
    for p, row in zip(params, noise.reshape(len(params), 6), strict=True):
        if p.grad is None:
            p.grad = torch.empty_like(p)
        p.grad.copy_(row[: p.numel()].reshape(p.shape))


def launched(opt: Any, seed: int = 1) -> list[str]:
    give(opt, seed)
    opt.step()
    return plan_of(opt).launches


def make(record: Record, count: int, dtype: torch.dtype = torch.float32, **arguments: Any) -> Any:
    return record.make(many(count, dtype), backend="emulated", **{**record.typical, **arguments})


def kernels_of(record: Record, dtype: torch.dtype, arguments: Arguments) -> list[str]:
    """One launch; two with a gate, and three if `gate_stats` precedes them."""
    if not record.projected:
        return ["step"]
    measured = dtype in (torch.bfloat16, torch.float16) or not arguments.get("speculate", True)
    return ["gate_stats"] * measured + ["update", "correct"]


def same_as_on_the_cpu(record: Record, opt: Any, steps: int, **arguments: Any) -> None:
    """Asserts the CPU backend's bits; only for rules without row sums."""
    other = record.make(many(len(parameters_of(opt))), backend="cpu", **{**record.typical, **arguments})
    for seed in range(steps):
        give(other, seed)
        other.step()
    assert_same_state(opt, other)


# ------------------------------------------------------------------ number of launches


@each_count
@each_optimizer
def test_no_uploads_in_a_steady_state(record: Record, count: int) -> None:
    """With gradients at unchanged addresses a step launches no uploads, though the step count changes."""
    opt = make(record, count)
    launched(opt)
    for seed in range(3):
        assert launched(opt, seed) == kernels_of(record, torch.float32, record.typical)
    assert len(emulated.launches()) >= 3


@each_dtype
@each_projected
@pytest.mark.parametrize("speculate", [True, False])
def test_gate_stats_without_speculation(dtype: torch.dtype, record: Record, speculate: bool) -> None:
    opt = make(record, 10, dtype, speculate=speculate)
    launched(opt)
    assert launched(opt) == kernels_of(record, dtype, {"speculate": speculate})


def test_gate_stats_for_project_momentum() -> None:
    opt = make(RECORDS["SGDP"], 10, project_momentum=True)
    launched(opt)
    assert launched(opt) == ["gate_stats", "update", "correct"]


def test_reported_launches_are_those_of_the_runtime() -> None:
    opt = make(RECORDS["AdamP"], 10, speculate=False)
    emulated.reset()
    names = launched(opt)
    grids = emulated.launches()
    assert names == ["upload", "gate_stats", "update", "correct"] and len(grids) == len(names)
    assert all(block == emulated.limits["block"] for _, block, _ in grids)


@each_projected
@pytest.mark.parametrize("projection", ["channel", "layer", "none"])
def test_a_fixed_gate_needs_no_gate_stats(record: Record, projection: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        opt = make(record, 10, dtype, projection=projection, speculate=False)
        launched(opt, 1)
        assert launched(opt, 2) == ["update", "correct"]


@each_projected
def test_vectors_need_no_gate(record: Record) -> None:
    opt = record.make([torch.ones(7), torch.ones(9)], backend="emulated", **record.typical)
    for p in parameters_of(opt):
        p.grad = torch.ones_like(p)
    opt.step()
    opt.step()
    assert plan_of(opt).launches == ["step"]


def test_every_dtype_has_its_own_kernels() -> None:
    dtypes = [torch.float16, torch.float32, torch.float64]
    opt = onepass.AdamW([torch.ones(5, dtype=dtype) for dtype in dtypes], backend="emulated")
    for p in parameters_of(opt):
        p.grad = torch.ones_like(p)
    opt.step()
    opt.step()
    assert plan_of(opt).launches == ["step"] * 3


def test_nothing_to_step() -> None:
    """No launch without gradients or elements; the first launches come with the first gradient."""
    p, empty = torch.ones(4, 3), torch.ones(0, 3)
    opt = onepass.AdamP([p, empty], backend="emulated")
    opt.step()
    assert plan_of(opt).launches == []
    empty.grad = torch.ones(0, 3)
    opt.step()
    opt.step()
    assert plan_of(opt).launches == []
    assert float(opt.state[empty]["step"]) == 2
    p.grad = torch.ones(4, 3)
    opt.step()
    assert plan_of(opt).launches == ["upload", "update", "correct"]


# ------------------------------------------------------------------ uploads


def chunks(first: int, last: int) -> int:
    """Launches needed to upload the words from `first` to `last`."""
    return -(-(last + 1 - first) // CHUNK)


@each_count
def test_new_gradients(count: int) -> None:
    """Gradient addresses are kernel parameters while they fit; beyond, they are in device memory, uploaded on change."""
    record = RECORDS["AdamW"]
    opt = make(record, count)
    launched(opt, 0)
    moved = []
    for p in parameters_of(opt):
        moved.append(p.grad)  # else the allocator would reuse its memory
        p.grad = p.grad.clone()
    in_memory = count > MOST_BY_VALUE
    assert launched(opt, 1) == ["upload"] * (chunks(0, count - 1) if in_memory else 0) + ["step"]
    assert launched(opt, 2) == ["step"]
    same_as_on_the_cpu(record, opt, 3)


def test_upload_spans_the_first_to_the_last_change() -> None:
    record = RECORDS["AdamW"]
    opt = make(record, 5000)
    params = parameters_of(opt)
    launched(opt, 0)
    kept = [p.grad for p in params]  # else the allocator would reuse their memory
    steps = 1
    for first, last in [(0, 0), (4999, 4999), (17, 4016), (17, 4017), (0, 4999), (999, 1000)]:
        for i in {first, last}:
            params[i].grad = params[i].grad.clone()
            kept.append(params[i].grad)
        emulated.reset()
        assert launched(opt, steps) == ["upload"] * chunks(first, last) + ["step"]
        assert emulated.traffic()["plan"][1] == 8 * (last + 1 - first)
        assert launched(opt, steps + 1) == ["step"]
        steps += 2
    same_as_on_the_cpu(record, opt, steps)


@each_count
def test_some_tensors_without_a_gradient(count: int) -> None:
    """At each step another third of the tensors has no gradient and is not stepped."""
    record = RECORDS["AdamW"]
    opt, other = make(record, count), record.make(many(count), backend="cpu", **record.typical)
    for seed in range(4):
        for each in (opt, other):
            give(each, seed)
            for i, p in enumerate(parameters_of(each)):
                if (i + seed) % 3 == 0:
                    p.grad = None
            each.step()
    assert_same_state(opt, other)


@pytest.mark.parametrize("distinct", [1, 8, 9, 40])
@pytest.mark.parametrize("count", [40, 1500])
def test_step_counts_that_differ(count: int, distinct: int) -> None:
    """Up to eight sets of scalars are kernel parameters. More are in device memory, uploaded at every step."""
    assert emulated.limits["scalars"] == 8
    record = RECORDS["AdamW"]
    opt, other = make(record, count), record.make(many(count), backend="cpu", **record.typical)
    for seed in range(3):
        for each in (opt, other):
            give(each, seed)
            if seed == 1:
                for i, p in enumerate(parameters_of(each)):
                    each.state[p]["step"].fill_(10 * (i % distinct))
            each.step()
        if seed == 2:
            assert plan_of(opt).launches == ["upload"] * (distinct > 8) + ["step"]
    assert_same_state(opt, other)


def test_hyper_parameters_are_kernel_parameters() -> None:
    record = RECORDS["AdamW"]
    opt, other = make(record, 1500), record.make(many(1500), backend="cpu", **record.typical)
    for seed, lr in enumerate((1e-2, 1e-3, 2e-3)):
        for each in (opt, other):
            each.param_groups[0].update(lr=lr, betas=(0.8, 0.95), weight_decay=10 * lr)
            give(each, seed)
            each.step()
    assert plan_of(opt).launches == ["step"]
    assert_same_state(opt, other)


def test_scalars_of_groups_are_kernel_parameters() -> None:
    """The scalars of eight groups are kernel parameters; those of nine are uploaded."""
    for groups in (8, 9):
        made = [
            onepass.AdamW(
                [{"params": many(3), "lr": 1e-3 * (i + 1)} for i in range(groups)], weight_decay=0.3, backend=backend
            )
            for backend in ("emulated", "cpu")
        ]
        for opt in made:
            for seed in range(3):
                give(opt, seed)
                opt.step()
        assert plan_of(made[0]).launches == ["upload"] * (groups > 8) + ["step"]
        assert_same_state(*made)


# ------------------------------------------------------------------ replaced tensors


def _follow(record: Record, count: int, change: Any, kernels: list[str], **arguments: Any) -> None:
    """Two steps, a change and two more steps, compared with the CPU backend."""
    opt = make(record, count, **arguments)
    other = record.make(many(count), backend="cpu", **{**record.typical, **arguments})
    for each in (opt, other):
        for seed in range(2):
            give(each, seed)
            each.step()
        change(each)
        for seed in range(2, 4):
            give(each, seed)
            each.step()
    assert plan_of(opt).launches == kernels
    assert_same_state(opt, other)


@each_count
def test_replaced_data(count: int) -> None:
    def change(opt: Any) -> None:
        for p in parameters_of(opt)[::7]:
            p.data = 2 * p.data

    _follow(RECORDS["AdamW"], count, change, ["step"])


@each_count
def test_replaced_moments(count: int) -> None:
    def change(opt: Any) -> None:
        for p in parameters_of(opt)[::7]:
            opt.state[p]["exp_avg"] = 2 * opt.state[p]["exp_avg"]

    _follow(RECORDS["AdamW"], count, change, ["step"])


@each_count
def test_new_addresses_are_uploaded_once(count: int) -> None:
    """Data addresses are in device memory; new ones are uploaded once."""
    opt = make(RECORDS["AdamW"], count)
    launched(opt, 0)
    params = parameters_of(opt)
    old = [p.data for p in params]
    for p in params:
        p.data = p.data.clone()
    assert launched(opt, 1) == ["upload"] * chunks(0, count * emulated.limits["tensor_bytes"] // 8 - 1) + ["step"]
    assert launched(opt, 2) == ["step"]
    same_as_on_the_cpu(RECORDS["AdamW"], opt, 3)
    assert len(old) == count


@pytest.mark.parametrize("count", [10, 1500])
@pytest.mark.parametrize("momenta", [(0.0, 0.9), (0.9, 0.0), (0.0, 0.5)])
def test_momentum_of_sgd_changes_between_steps(momenta: tuple[float, float], count: int) -> None:
    """Other kernels: with a buffer, into which the first gradient enters undampened, or without."""

    def change(opt: Any) -> None:
        opt.param_groups[0]["momentum"] = momenta[1]

    _follow(RECORDS["SGD"], count, change, ["step"], momentum=momenta[0], dampening=0.4)


def test_groups_of_sgd_with_and_without_a_buffer() -> None:
    made = [
        onepass.SGD([{"params": many(3), "momentum": m} for m in (0.0, 0.9)], lr=0.1, weight_decay=0.3, backend=backend)
        for backend in ("emulated", "cpu")
    ]
    for opt in made:
        for seed in range(3):
            give(opt, seed)
            opt.step()
    assert plan_of(made[0]).launches == ["step", "step"]
    assert_same_state(*made)


@each_optimizer
@pytest.mark.parametrize("count", [10, 1500])
def test_no_allocation_after_the_first_step(record: Record, count: int) -> None:
    """Plan and memory stay those of the first step when gradient addresses and hyper-parameters change."""
    opt = make(record, count)
    launched(opt, 0)
    (bound,) = opt._execution.backends
    plan, memory, address = bound.plan, bound.memory, bound.memory.data_ptr()
    for seed in range(1, 4):
        for p in parameters_of(opt):
            p.grad = p.grad.clone()
        opt.param_groups[0]["lr"] *= 0.9
        launched(opt, seed)
    (bound,) = opt._execution.backends
    assert bound.plan is plan and bound.memory is memory and memory.data_ptr() == address
    assert plan.memory_bytes == memory.numel()


# ------------------------------------------------------------------ failing launches


def _fail(opt: Any, error: int = 719) -> str:
    give(opt, 2)
    emulated.fail_next_launch(error)
    with pytest.raises(RuntimeError) as caught:
        opt.step()
    return str(caught.value)


NAMES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}
FIRST_KERNEL = {"AdamP": "update", "SGDP": "update"}
FAMILY = {"SGD": "SGD with a buffer", "SGDP": "SGD with a buffer"}


@each_dtype
@each_optimizer
def test_failed_launch_writes_nothing(dtype: torch.dtype, record: Record) -> None:
    """The message names kernel, dtype, device and error. Nothing is written and no step counted."""
    opt = make(record, 10, dtype)
    launched(opt, 1)
    counters = [own["step"].clone() for own in opt.state.values() if "step" in own]
    give(opt, 2)
    before = Snapshot(opt)
    kernel = kernels_of(record, dtype, record.typical)[0]
    assert _fail(opt) == (
        f"onepass: launching {kernel} ({NAMES[dtype]}, {FAMILY.get(record.name, 'Adam')}) on cuda:0 failed: "
        "cudaErrorLaunchFailure (unspecified launch failure)"
    )
    before.assert_unchanged()
    for own, count in zip((own for own in opt.state.values() if "step" in own), counters, strict=True):
        assert_same_bits(own["step"], count, "step count")


@each_optimizer
def test_step_after_a_failed_launch(record: Record) -> None:
    """A failed step has no effect on the next one."""
    opt, other = make(record, 10), make(record, 10)
    for each in (opt, other):
        launched(each, 1)
    _fail(opt)
    for each in (opt, other):
        launched(each, 2)
        launched(each, 3)
    assert_same_state(opt, other)


def test_the_first_launch_fails() -> None:
    opt, other = make(RECORDS["SGD"], 10, dampening=0.4), make(RECORDS["SGD"], 10, dampening=0.4)
    assert "failed: cudaErrorIllegalAddress (an illegal memory access was encountered)" in _fail(opt, 700)
    for each in (opt, other):
        launched(each, 2)
        launched(each, 3)
    assert_same_state(opt, other)  # its next gradient is still the first, which is not dampened


def test_too_much_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated.device, "shared_per_block", 10**6)  # more than the emulated host has
    opt = make(RECORDS["AdamP"], 3)
    give(opt, 1)
    with pytest.raises(RuntimeError, match=r"reserving shared memory for update \(float32, Adam\) on cuda:0 failed"):
        opt.step()


def test_failed_upload_is_repeated() -> None:
    record = RECORDS["AdamW"]
    opt = make(record, 1500)
    launched(opt, 0)
    old = [p.grad for p in parameters_of(opt)]
    for p in parameters_of(opt):
        p.grad = p.grad.clone()
    assert "launching upload on cuda:0 failed" in _fail(opt)
    assert launched(opt, 1) == ["upload", "step"]
    launched(opt, 2)
    same_as_on_the_cpu(record, opt, 3)
    assert len(old) == 1500


# ------------------------------------------------------------------ several optimizers


def test_plans_with_different_row_cache_sizes() -> None:
    """The shared memory limit is an attribute of a kernel, not of a plan: of two alternating plans, the later needs less."""
    record = RECORDS["AdamP"]
    shapes = [[(3, 18_000)], [(3, 40)]]
    made = [
        [record.make([torch.ones(s) for s in shape], backend=backend, **record.typical) for shape in shapes]
        for backend in ("emulated", "cpu")
    ]
    for seed in range(3):
        for opt in (*made[0], *made[1]):
            for p in parameters_of(opt):
                p.grad = torch.randn(p.shape, generator=generator(seed))
            opt.step()
    wide, narrow = (plan_of(opt).row_cache_bytes for opt in made[0])
    assert wide > narrow
    for got, want in zip(*made, strict=True):
        for p, q in zip(parameters_of(got), parameters_of(want), strict=True):
            torch.testing.assert_close(p, q)
