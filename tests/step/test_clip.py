"""`clip_grad_norm_`: torch's clip coefficient, applied by the step as it reads the gradients."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, through_a_file, train
from emulated_backend import emulated
from records import BACKENDS, Record, each_backend, each_dtype, each_optimizer
from tensors import LAYOUTS, Guarded, values

SHAPES: list[tuple[int, ...]] = [(40, 30), (7,), (), (0, 4), (5, 3, 3, 3)]
LONG = [*SHAPES, (3, 40_000)]  # rows too long for any row cache


def make(record: Record, backend: str = "cpu", dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    return record.make(parameters(dtype), backend=backend, **{**record.typical, **changed})


def adamp(shapes: Sequence[tuple[int, ...]] = SHAPES, backend: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    params = [values(shape, dtype, i).requires_grad_() for i, shape in enumerate(shapes)]
    opt = onepass.AdamP(params, lr=0.1, weight_decay=0.1, backend=backend)
    for i, p in enumerate(params):
        p.grad = values(p.shape, dtype, 100 + i)
    return opt


def gradients_of(opt: Any) -> list[Tensor]:
    return [p.grad for p in parameters_of(opt)]


def norm_of(gradients: list[Tensor]) -> float:
    """In more digits than any backend computes."""
    return math.sqrt(math.fsum(x * x for g in gradients for x in g.double().flatten().tolist()))


# ------------------------------------------------------------------ the same as torch


@each_dtype
@each_backend
@each_optimizer
def test_same_as_scaled_gradients(record: Record, backend: str, dtype: torch.dtype) -> None:
    """The bits of a step on gradients that were multiplied by torch's coefficient."""
    ours, plain = make(record, backend, dtype), make(record, backend, dtype)
    for time in range(4):
        feed(ours, time)
        limit = 0.3 * norm_of(gradients_of(ours))
        for p, q in zip(parameters_of(ours), parameters_of(plain), strict=True):
            q.grad = p.grad.clone()
        total_norm = ours.clip_grad_norm_(limit)
        coefficient = float(torch.clamp(limit / (total_norm + 1e-6), max=1.0))
        assert 0.29 < coefficient < 0.31
        ours.step()
        # A 16-bit gradient would round the product.
        sign = -1.0 if ours.param_groups[0]["maximize"] else 1.0
        plain.param_groups[0]["maximize"] = False
        _step_scaled(plain, sign * coefficient)
        for i, (p, q) in enumerate(zip(parameters_of(ours), parameters_of(plain), strict=True)):
            assert_same_bits(p, q, f"step {time}, parameter {i}")


def _step_scaled(opt: Any, factor: float) -> None:
    """A step with the factor, and the sign of `maximize`, in a float64 grad_scale."""
    opt.grad_scale = torch.tensor(1 / factor, dtype=torch.float64)
    opt.step()
    del opt.grad_scale


@each_backend
@each_optimizer
def test_same_as_torch(record: Record, backend: str) -> None:
    ours, theirs = make(record, backend), make(record, backend)
    for time in range(4):
        feed(ours, time)
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            q.grad = p.grad.clone()
        for limit in (1.5, 0.7):  # the second clips the result of the first
            got = ours.clip_grad_norm_(limit)
            want = torch.nn.utils.clip_grad_norm_(parameters_of(theirs), limit)
            torch.testing.assert_close(got, want)
        ours.step()
        theirs.step()
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


@each_backend
def test_gradients_are_not_written(backend: str) -> None:
    opt = adamp(backend=backend)
    before = [g.clone() for g in gradients_of(opt)]
    opt.clip_grad_norm_(1e-3)
    opt.step()
    for i, (g, want) in enumerate(zip(gradients_of(opt), before, strict=True)):
        assert_same_bits(g, want, f"gradient {i}")


@each_backend
def test_norm_below_the_limit_changes_nothing(backend: str) -> None:
    clipped, plain = adamp(backend=backend), adamp(backend=backend)
    clipped.clip_grad_norm_(1e9)
    clipped.step()
    plain.step()
    assert_same_state(clipped, plain)


# ------------------------------------------------------------------ the norm


@each_dtype
@each_backend
def test_norm(backend: str, dtype: torch.dtype) -> None:
    opt = adamp(LONG, backend, dtype)
    total_norm = opt.clip_grad_norm_(1.0)
    assert total_norm.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and total_norm.shape == ()
    assert float(total_norm) == pytest.approx(norm_of(gradients_of(opt)), rel=1e-15 if dtype == torch.float64 else 1e-7)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_norm_of_any_layout(backend: str, layout: Any) -> None:
    opt = adamp(backend=backend)
    want = norm_of(gradients_of(opt))
    for p in parameters_of(opt):
        p.grad = Guarded(p.grad, layout).tensor
    assert float(opt.clip_grad_norm_(1.0)) == pytest.approx(want, rel=1e-7)


@each_backend
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_norm_of_tiny_and_huge_gradients(backend: str, size: float) -> None:
    """Their squares overflow or underflow float32."""
    opt = adamp(backend=backend)
    for g in gradients_of(opt):
        g.mul_(size)
    assert float(opt.clip_grad_norm_(1.0)) == pytest.approx(norm_of(gradients_of(opt)), rel=1e-6)


@each_backend
def test_norm_is_over_all_groups(backend: str) -> None:
    first = values((40, 30), torch.float32, 0)
    second = values((500,), torch.float64, 1)
    third = values((4, 9), torch.bfloat16, 2)
    without = values((4, 9), torch.float32, 3)
    opt = onepass.AdamW([{"params": [first, third]}, {"params": [second, without]}, {"params": []}], backend=backend)
    for p in (first, second, third):
        p.grad = torch.ones_like(p)
    assert float(opt.clip_grad_norm_(1.0)) == pytest.approx(math.sqrt(1200 + 500 + 36), rel=1e-14)
    # A removed gradient is not in the next norm.
    opt.zero_grad()
    first.grad = torch.ones_like(first)
    assert float(opt.clip_grad_norm_(1.0)) == pytest.approx(math.sqrt(1200), rel=1e-14)


@each_backend
def test_clip_without_gradients(backend: str) -> None:
    opt = adamp(backend=backend)
    opt.zero_grad()
    before = Snapshot(opt)
    assert float(opt.clip_grad_norm_(1.0)) == 0
    opt.step()
    before.assert_unchanged()


def test_norm_for_any_number_of_threads() -> None:
    opt = adamp([*LONG, (300_000,)])
    norms = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        norms.append(opt.clip_grad_norm_(1e9))
    assert len({float(norm) for norm in norms}) == 1


def test_norm_for_any_order_of_blocks() -> None:
    opt = adamp(LONG, "emulated")
    norms = set()
    for seed in range(5):
        emulated.reset(seed)
        norms.add(float(opt.clip_grad_norm_(1e9)))
    assert len(norms) == 1


# ------------------------------------------------------------------ NaN and Inf


@each_backend
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_nonfinite_norms_act_as_in_torch(backend: str, bad: float) -> None:
    ours, theirs = adamp([(6, 4), (3,)], backend), adamp([(6, 4), (3,)], backend)
    for opt in (ours, theirs):
        gradients_of(opt)[1][1] = bad
    assert not ours.clip_grad_norm_(1.0).isfinite()
    torch.nn.utils.clip_grad_norm_(parameters_of(theirs), 1.0)
    ours.step()
    theirs.step()
    assert_same_parameters(ours, theirs)


def assert_same_parameters(ours: Any, theirs: Any) -> None:
    for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_error_if_nonfinite(backend: str, bad: float) -> None:
    opt = adamp(backend=backend)
    clean = adamp(backend=backend)
    gradients_of(opt)[0][3, 17] = bad
    with pytest.raises(RuntimeError, match=r"the norm of all gradients is (inf|nan).*error_if_nonfinite=False"):
        opt.clip_grad_norm_(1.0, error_if_nonfinite=True)
    # No coefficient is pending.
    gradients_of(opt)[0].copy_(gradients_of(clean)[0])
    opt.step()
    clean.step()
    assert_same_state(opt, clean)


# ------------------------------------------------------------------ gradients that a coefficient applies to


def fresh_gradients(opt: Any) -> None:
    for i, p in enumerate(parameters_of(opt)):
        p.grad = values(p.shape, p.dtype, 300 + i)


FORGOTTEN = {
    "zero_grad": lambda opt: (opt.zero_grad(), fresh_gradients(opt)),
    "zero_grad in place": lambda opt: (
        opt.zero_grad(set_to_none=False),
        [p.grad.copy_(values(p.shape, p.dtype, 300 + i)) for i, p in enumerate(parameters_of(opt))],
    ),
    "a step": lambda opt: (opt.step(), fresh_gradients(opt)),
}


@pytest.mark.parametrize("happens", FORGOTTEN.values(), ids=FORGOTTEN)
def test_coefficient_does_not_apply_to_later_gradients(happens: Any) -> None:
    opt = adamp()
    opt.clip_grad_norm_(1e-3)
    happens(opt)
    twin = copy.deepcopy(opt)
    for p, q in zip(parameters_of(opt), parameters_of(twin), strict=True):
        q.grad = p.grad.clone()
    opt.step()
    twin.step()
    assert_same_state(opt, twin)


@pytest.mark.parametrize("again", [True, False], ids=["clip", "step"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: setattr(p, "grad", p.grad.clone()),
            r"parameter 0 of group 0.*its gradient was replaced after clip_grad_norm_.*zero_grad",
        ),
        (
            lambda p: p.grad.add_(1),
            r"parameter 0 of group 0, shape \(40, 30\): its gradient was written to after clip_grad_norm_.*zero_grad",
        ),
        (
            lambda q: setattr(q, "grad", torch.ones_like(q)),
            r"parameter 5 of group 0, shape \(6, 5\): its gradient was replaced after clip_grad_norm_.*zero_grad",
        ),
    ],
    ids=["replaced", "written to", "added"],
)
def test_changed_gradients_are_rejected(change: Any, message: str, again: bool) -> None:
    opt = adamp([*SHAPES, (6, 5)])
    opt.step()
    parameters_of(opt)[5].grad = None
    opt.clip_grad_norm_(1e-3)
    change(parameters_of(opt)[5 if "parameter 5" in message else 0])
    before = Snapshot(opt)
    with pytest.raises(RuntimeError, match=message):
        opt.clip_grad_norm_(1e-3) if again else opt.step()
    before.assert_unchanged()
    opt.zero_grad()
    opt.step()


def test_new_gradients_are_clipped_anew() -> None:
    """clip_grad_norm_ clips the current gradients, as torch's does; a step without it raises."""
    opt, plain = adamp(), adamp()
    opt.clip_grad_norm_(1e-3)
    for each in (opt, plain):
        fresh_gradients(each)
    before = Snapshot(opt)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0.*was replaced"):
        opt.step()
    before.assert_unchanged()
    assert float(opt.clip_grad_norm_(1e-2)) == float(plain.clip_grad_norm_(1e-2))
    opt.step()
    plain.step()
    assert_same_state(opt, plain)


def test_two_optimizers_of_the_same_parameters() -> None:
    """Each has its own coefficient."""
    one, alone = adamp(), adamp()
    other = onepass.SGD(parameters_of(one))
    one.clip_grad_norm_(1e-3)
    other.clip_grad_norm_(1e-1)
    alone.clip_grad_norm_(1e-3)
    one.step()
    alone.step()
    assert_same_parameters(one, alone)


@each_backend
def test_clipped_gradients_are_plain_tensors(tmp_path: Path, backend: str) -> None:
    """It can be saved, and nothing else refers to it."""
    opt = adamp(backend=backend)
    opt.clip_grad_norm_(1e-3)
    torch.save(gradients_of(opt), tmp_path / "gradients.pt")
    for g, want in zip(torch.load(tmp_path / "gradients.pt", weights_only=True), gradients_of(opt), strict=True):
        assert_same_bits(g, want, "gradient")
    del g, want
    for steps in (False, True):
        if steps:
            opt.step()
        kept = [weakref.ref(g) for g in gradients_of(opt)]
        opt.zero_grad()
        assert not any(ref() is not None for ref in kept)
        fresh_gradients(opt)
        opt.clip_grad_norm_(1e-3)


def test_gradients_made_in_inference_mode() -> None:
    opt, plain = adamp(), adamp()
    for p in parameters_of(opt):
        with torch.inference_mode():
            own = p.grad.clone()
        p.grad = own
    for each in (opt, plain):
        each.clip_grad_norm_(1e-3)
        each.step()
    assert_same_parameters(opt, plain)


def test_gradient_removed_after_clipping() -> None:
    opt, twin = adamp(), adamp()
    opt.clip_grad_norm_(1e-3)
    opt.step()
    twin.clip_grad_norm_(1e-3)
    twin.step()
    for each in (opt, twin):
        fresh_gradients(each)
    opt.clip_grad_norm_(1e-3)
    parameters_of(opt)[1].grad = None
    opt.step()
    twin.clip_grad_norm_(1e-3)
    twin.step()
    assert_same_bits(parameters_of(opt)[0], parameters_of(twin)[0], "a parameter with a gradient")


# ------------------------------------------------------------------ clipping and state


@each_backend
@each_optimizer
def test_clipping_makes_no_state(record: Record, backend: str) -> None:
    """No state is saved or copied either, and a run resumed from there has the bits of the unbroken one."""
    opt, resumed = make(record, backend), make(record, backend)
    feed(opt, 0)
    for _ in range(2):
        opt.clip_grad_norm_(0.5)
        assert not opt.state
    saved = opt.state_dict()
    assert not saved["state"] and not copy.deepcopy(opt).state
    resumed.load_state_dict(through_a_file(saved))
    opt.step()
    train_clipped(resumed, [0])
    assert_same_state(opt, resumed)


def train_clipped(opt: Any, times: Iterable[int]) -> None:
    for time in times:
        feed(opt, time)
        opt.clip_grad_norm_(0.5)
        opt.clip_grad_norm_(0.5)
        opt.step()


@each_backend
@each_optimizer
def test_first_gradients_of_some_parameters(record: Record, backend: str) -> None:
    """Some parameters get their first gradient when others already have state: the bits of a run that scales by hand."""
    ours, plain = make(record, backend), make(record, backend)
    late = slice(0, None, 2)
    for time in range(4):
        for each in (ours, plain):
            feed(each, time)
            for p in parameters_of(each)[late] if time < 2 else ():
                p.grad = None
        if time:
            before = {p: dict(own) for p, own in ours.state.items()}
            total_norm = ours.clip_grad_norm_(0.5)
            assert ours.state.keys() == before.keys()
            assert all(ours.state[p].keys() == own.keys() for p, own in before.items())
            plain.grad_scale = 1 / torch.clamp(0.5 / (total_norm + 1e-6), max=1.0).double()
        ours.step()
        plain.step()
    for p, q in zip(parameters_of(ours), parameters_of(plain), strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
@each_optimizer
def test_missing_and_partial_state(record: Record, backend: str) -> None:
    """A clipping works with any state, and does not change it."""
    ours, plain = make(record, backend), make(record, backend)
    for each in (ours, plain):
        train_clipped(each, range(2))
        params = parameters_of(each)
        each.state.pop(params[0])
        each.state[params[1]] = {"of a hook": 1}
        each.state[params[2]].pop(record.moments[0])
        each.state[params[3]][record.moments[-1]] = None
        for key in ("step", "gate_counter"):
            each.state[params[5]].pop(key, None)
        feed(each, 2)
    before = {p: dict(own) for p, own in ours.state.items()}
    want = norm_of(gradients_of(ours))
    assert float(ours.clip_grad_norm_(1e9)) == pytest.approx(want, rel=1e-6)
    assert {p: dict(own) for p, own in ours.state.items()} == before
    ours.step()
    plain.step()
    assert_same_parameters(ours, plain)


def test_clipping_in_a_closure() -> None:
    opt, plain = adamp(), adamp()

    def closure() -> float:
        opt.clip_grad_norm_(1e-3)
        return 4.0

    assert opt.step(closure) == 4.0
    plain.clip_grad_norm_(1e-3)
    plain.step()
    assert_same_state(opt, plain)


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (-1.0, ValueError),
        (math.nan, ValueError),
        ("1", TypeError),
        (None, TypeError),
        (True, TypeError),
        (torch.ones(2), TypeError),
        (torch.tensor(1j), TypeError),
        (torch.tensor(-1.0), ValueError),
    ],
)
def test_invalid_max_norm(given: Any, error: type[Exception]) -> None:
    opt = adamp()
    with pytest.raises(error, match="max_norm must be"):
        opt.clip_grad_norm_(given)


@pytest.mark.parametrize("given", [1, torch.tensor(1.0), math.inf, 0.0])
def test_valid_max_norm(given: Any) -> None:
    adamp().clip_grad_norm_(given)


# ------------------------------------------------------------------ device-counted groups


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("emulated", "triton")])
@each_optimizer
def test_step_counts_move_to_the_device_once(record: Record, backend: str) -> None:
    """In mid-run, with the bits of a run that the device counts from its start."""
    opt = train(make(record, backend), range(2))
    plan = opt._execution.backends
    early = make(record, backend)
    early._execution.counts_on_device = True
    train(early, range(2))
    for each in (opt, early):
        for time in (2, 3):
            feed(each, time)
            each.clip_grad_norm_(0.5)
            each.step()
    assert opt._execution.counts_on_device and opt._execution.backends is not plan
    assert_same_state(opt, early)
    plan = opt._execution.backends
    train(opt, [4])
    assert opt._execution.backends is plan


@each_optimizer
def test_launches_of_a_clipped_step(record: Record) -> None:
    opt = make(record, "emulated")
    (feed(opt, 0), opt.step(), feed(opt, 1))
    opt.clip_grad_norm_(1.0)
    (bound,) = opt._execution.backends
    assert bound.plan.launches[-2:] == ["square_sum", "add_up"]
    opt.step()
    assert bound.plan.launches == ["device_scalars"] + (["update", "correct"] if record.projected else ["step"])
