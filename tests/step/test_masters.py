"""master_weights: a bfloat16 parameter with its remainder is a float32 weight, stepped as one, bit for bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits, assert_same_state
from onepass.masters import MASTER, joined, split
from oracles import Arguments
from records import RECORDS, Record, each_backend, each_compiled, each_optimizer, each_projected, each_variant
from tensors import LARGE_SHAPES, LAYOUTS, SMALL_SHAPES, Gradients, Guarded, gradient, values

BF16 = torch.bfloat16
SPECIAL = [
    0x7FFFFFFF,
    0x7F800001,
    -1,
    -0x7FFFFF,
    0x7F7F8000,
    0x7F7FFFFF,
    0x7F800000,
    -0x800000,
    0,
    -(2**31),
    1,
    0x8000,
    0x3F808000,
]


def floats(count: int) -> Tensor:
    """Float32 of all patterns: each upper half a few times, each lower half likewise, and special ones."""
    at = torch.arange(count, dtype=torch.int64)
    pattern = ((at * 0x9E3779B1) & 0xFFFFFFFF).to(torch.int64)
    pattern = pattern - (pattern >= 1 << 31) * (1 << 32)
    return torch.cat([torch.tensor(SPECIAL), pattern]).to(torch.int32).view(torch.float32)


def exact_pair(
    record: Record, arguments: Arguments, starts: list[Tensor], backend: str, layout: str = "contiguous"
) -> Any:
    """An optimizer with exact weights `starts` of bfloat16 parameters, and one of float32 parameters."""
    guarded = [Guarded(start.to(BF16), LAYOUTS[layout]) for start in starts]
    exact = record.make([one.tensor for one in guarded], backend=backend, master_weights=True, **arguments)
    for one, start in zip(guarded, starts, strict=True):
        exact.set_master(one.tensor, start)
    models = [Guarded(start, LAYOUTS[layout]).tensor for start in starts]
    return exact, record.make(models, backend=backend, **arguments), guarded


def params_of(opt: Any) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def assert_equal_weights(exact: Any, wide: Any) -> None:
    for i, (p, q) in enumerate(zip(params_of(exact), params_of(wide), strict=True)):
        assert_same_bits(exact.master(p), q, f"weight {i}")
        assert_same_bits(p, split(q.detach())[0], f"parameter {i}")
        own = {key: value for key, value in exact.state[p].items() if key != MASTER} if p in exact.state else {}
        assert own.keys() == wide.state.get(q, {}).keys()
        for key, value in own.items():
            assert_same_bits(value, wide.state[q][key], f"parameter {i} {key}")


def step_both(exact: Any, wide: Any, gradients: Any, layout: str = "contiguous") -> None:
    for p, q in zip(params_of(exact), params_of(wide), strict=True):
        g = gradients(q.detach()).to(BF16)
        p.grad, q.grad = Guarded(g, LAYOUTS[layout]).tensor, Guarded(g.float(), LAYOUTS[layout]).tensor
    exact.step()
    wide.step()


# ------------------------------------------------------------------ the parts


def test_split_and_joined_are_inverse() -> None:
    x = floats(1 << 20)
    p, remainder = split(x)
    assert p.dtype == BF16 and remainder.dtype == torch.int16
    assert_same_bits(joined(p, remainder), x, "weight")
    assert torch.equal(p.isnan(), x.isnan())
    finite = x.isfinite()
    error, nearest = (p.double() - x.double()).abs()[finite], (x.to(BF16).double() - x.double()).abs()[finite]
    assert bool(((error <= nearest) | p[finite].isinf()).all())


def test_ties_go_away_from_zero() -> None:
    for sign in (1.0, -1.0):
        x = sign * torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])
        assert torch.equal(split(x)[0].float(), sign * torch.tensor([1 + 2.0**-7, 1 + 2.0**-6]))


def test_any_remainder_of_any_parameter() -> None:
    """No NaN of a parameter that is none, no number of a NaN, and the sign is the parameter's."""
    p = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(BF16)
    for remainder in (0, 1, -1, 32767, -32767, -32768, 12345, -4711):
        x = joined(p, torch.full_like(p, remainder, dtype=torch.int16))
        assert torch.equal(x.isnan(), p.isnan())
        assert torch.equal(x.signbit()[~p.isnan()], p.signbit()[~p.isnan()])


@each_backend
def test_a_step_of_nothing_keeps_every_float(backend: str) -> None:
    x = floats(70_001)
    p = torch.zeros(x.shape, dtype=BF16)
    opt = onepass.SGD([p], lr=0.0, master_weights=True, backend=backend)
    opt.set_master(p, x)
    p.grad = torch.zeros_like(p)
    opt.step()
    finite = x.isfinite()
    assert_same_bits(opt.master(p)[finite], x[finite], "weight")
    assert torch.equal(opt.master(p).isnan(), p.isnan()) and torch.equal(p.isnan(), x.isnan())


# ------------------------------------------------------------------ as float32


def compare(
    record: Record, arguments: Arguments, shapes: list[Any], backend: str, steps: int, layout: str = "contiguous"
) -> None:
    starts = [values(shape, torch.float32, seed, 0.7) for seed, shape in enumerate(shapes)]
    exact, wide, guarded = exact_pair(record, arguments, starts, backend, layout)
    gradients = Gradients()
    for _ in range(steps):
        step_both(exact, wide, gradients, layout)
    assert_equal_weights(exact, wide)
    for one in guarded:
        one.assert_guards_intact("parameter")


@each_backend
@each_variant
def test_every_variant_is_that_of_float32(backend: str, record: Record, arguments: Arguments) -> None:
    compare(record, arguments, SMALL_SHAPES, backend, 5)


@each_backend
@each_optimizer
def test_20_steps_are_those_of_float32(backend: str, record: Record) -> None:
    compare(record, record.typical, [(33, 65), (3, 7, 3, 3), (300,)], backend, 20)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@each_optimizer
def test_layouts(backend: str, layout: str, record: Record) -> None:
    compare(record, record.typical, [(), (17,), (5, 17), (3, 7, 3, 3), (40, 1025)], backend, 2, layout)


@each_compiled
@each_optimizer
def test_remainders_of_another_layout(backend: str, record: Record) -> None:
    start = values((6, 5, 3), torch.float32, 1)
    exact, wide, _ = exact_pair(record, record.typical, [start], backend)
    p = params_of(exact)[0]
    guarded = Guarded(exact.state[p][MASTER], LAYOUTS["gapped_transposed"])
    exact.state[p][MASTER] = guarded.tensor
    gradients = Gradients()
    for _ in range(2):
        step_both(exact, wide, gradients)
    assert_equal_weights(exact, wide)


@each_compiled
def test_a_remainder_that_is_not_aligned_as_its_parameter(backend: str) -> None:
    start = values((40, 64), torch.float32, 1)
    p, q = split(start)[0], start.clone()
    exact = onepass.AdamW([p], master_weights=True, backend=backend)
    exact.set_master(p, start)
    exact.state[p][MASTER] = Guarded(exact.state[p][MASTER]).tensor
    wide = onepass.AdamW([q], backend=backend)
    g = values(p.shape, BF16, 2)
    p.grad, q.grad = g, g.float()
    exact.step()
    wide.step()
    assert_equal_weights(exact, wide)


@each_compiled
@each_optimizer
def test_large_tensors(backend: str, record: Record) -> None:
    compare(record, record.typical, LARGE_SHAPES, backend, 2)


@each_compiled
@each_projected
@pytest.mark.parametrize("gate", ["none", "channel", "layer"])
@pytest.mark.parametrize("counter", [0, 3])
def test_a_wrong_prediction_is_corrected(backend: str, record: Record, gate: str, counter: int) -> None:
    starts = [values(shape, torch.float32, 1) for shape in [(6, 33), (32, 1025), (2, 33000)]]
    exact, wide, _ = exact_pair(record, record.typical, starts, backend)
    for opt in (exact, wide):
        for p in params_of(opt):
            opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)
    step_both(exact, wide, lambda p: gradient(gate, p, 3))
    assert [verdict.gate for verdict in exact.last_step().values()] == [gate] * 3
    assert {verdict.corrected for verdict in exact.last_step().values()} == {gate != ("channel" if counter else "none")}
    assert_equal_weights(exact, wide)


@each_backend
@each_optimizer
def test_clipped_and_scaled_steps(backend: str, record: Record) -> None:
    starts = [values(shape, torch.float32, seed) for seed, shape in enumerate([(33, 65), (7,)])]
    exact, wide, _ = exact_pair(record, record.typical, starts, backend)
    gradients = Gradients()
    for scale, overflows in ((2.0, 0.0), (4.0, 1.0), (2.0, 0.0)):
        for p, q in zip(params_of(exact), params_of(wide), strict=True):
            g = gradients(q.detach()).to(BF16)
            p.grad, q.grad = g, g.float()
        for opt in (exact, wide):
            opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(overflows)
            opt.clip_grad_norm_(0.5)
            opt.step()
            del opt.grad_scale, opt.found_inf
    assert_equal_weights(exact, wide)


@each_optimizer
def test_capturable(record: Record) -> None:
    starts = [values((33, 65), torch.float32, 1)]
    exact, wide, _ = exact_pair(record, {**record.typical, "capturable": True}, starts, "emulated")
    gradients = Gradients()
    for _ in range(3):
        step_both(exact, wide, gradients)
    assert_equal_weights(exact, wide)


@each_backend
def test_mixed_dtypes_in_a_group(backend: str) -> None:
    """Parameters of float32 and float64 have no remainder and are stepped as without."""
    params = [values((5, 3), dtype, 1) for dtype in (torch.float32, torch.float64, BF16)]
    others = [p.clone() for p in params]
    a = onepass.AdamW(params, master_weights=True, backend=backend)
    b = onepass.AdamW(others, backend=backend)
    for p, q in zip(params, others, strict=True):
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    a.step()
    b.step()
    for p, q in zip(params[:2], others[:2], strict=True):
        assert_same_bits(p, q, "parameter")
        assert MASTER not in a.state[p]
        assert torch.equal(a.master(p), p) and a.master(p) is not p
    assert a.state[params[2]][MASTER].dtype == torch.int16


@each_backend
def test_updates_below_half_a_unit_are_kept(backend: str) -> None:
    """What bfloat16 alone loses: a gain of 1 that moves by 1e-4 a step."""
    made = {}
    for exact in (True, False):
        p = torch.ones(64, dtype=BF16)
        opt = onepass.AdamW([p], lr=1e-4, weight_decay=0.0, master_weights=exact, backend=backend)
        for _ in range(100):
            p.grad = torch.full_like(p, 0.25)
            opt.step()
        made[exact] = float(p.float().mean())
    assert made[False] == 1.0
    assert made[True] == pytest.approx(0.99, abs=2e-3)


# ------------------------------------------------------------------ what users write


@each_backend
@pytest.mark.parametrize("write", [lambda p, w: p.copy_(w), lambda p, w: setattr(p, "data", w)], ids=["copy", "data"])
def test_a_written_weight_is_kept_to_half_a_unit(backend: str, write: Any) -> None:
    start, written = values((9, 33), torch.float32, 1), values((9, 33), BF16, 2)
    (exact, _, _) = exact_pair(RECORDS["AdamP"], {}, [start], backend)
    p = params_of(exact)[0]
    write(p, written)
    unit = 2.0 ** (written.float().abs().log2().floor() - 7)
    assert bool(((exact.master(p) - written.float()).abs() <= unit / 2).all())
    wide = torch.nn.Parameter(exact.master(p).clone())
    other = onepass.AdamP([wide], backend=backend)
    g = gradient("channel", wide.detach(), 3).to(BF16)
    p.grad, wide.grad = g, g.float()
    exact.step()
    other.step()
    assert_same_bits(exact.master(p), wide, "weight")


@each_backend
@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf])
def test_a_mask_makes_no_nan(backend: str, value: float) -> None:
    start = values((40, 33), torch.float32, 1)
    exact, _, _ = exact_pair(RECORDS["AdamW"], dict(weight_decay=0.0), [start], backend)
    p = params_of(exact)[0]
    masked = values(p.shape, torch.float32, 5) > 0
    for _ in range(3):
        p[masked] = value
        p.grad = values(p.shape, BF16, 3)
        p.grad[masked] = 0
        exact.step()
        assert not bool(p.isnan().any()) and not bool(exact.master(p).isnan().any())


@each_backend
def test_nan_stays(backend: str) -> None:
    p = values((4, 9), BF16, 1)
    p[1, 2] = math.nan
    opt = onepass.AdamP([p], master_weights=True, backend=backend)
    p.grad = torch.ones_like(p)
    opt.step()
    assert bool(p[1, 2].isnan()) and bool(opt.master(p)[1, 2].isnan()) and int(opt.state[p][MASTER][1, 2]) == 0


@each_backend
def test_nan_of_any_payload_stays(backend: str) -> None:
    """That of CUDA's arithmetic has all bits set, which rounding would carry into the sign."""
    p = values((40,), BF16, 1)
    opt = onepass.AdamW([p], master_weights=True, backend=backend)
    p.grad = torch.ones_like(p)
    opt.step()
    opt.state[p]["exp_avg"].view(torch.int32)[3] = 0x7FFFFFFF
    opt.step()
    assert bool(p[3].isnan()) and bool(opt.master(p)[3].isnan()) and int(opt.state[p][MASTER][3]) == 0
    assert int(p.isnan().sum()) == 1


def test_set_master_before_and_between_steps() -> None:
    p, x = torch.nn.Parameter(torch.zeros(5, 3, dtype=BF16)), values((5, 3), torch.float64, 1)
    opt = onepass.AdamW([p], master_weights=True)
    assert torch.equal(opt.master(p), torch.zeros(5, 3))
    for _ in range(2):
        opt.set_master(p, x)
        assert_same_bits(opt.master(p), x.float(), "weight")
        p.grad = torch.ones_like(p)
        opt.step()
        assert not torch.equal(opt.master(p), x.float())
    q = torch.nn.Parameter(torch.zeros(5, 3))
    onepass.AdamW([q], master_weights=True).set_master(q, x)
    assert torch.equal(q, x.float())


@each_optimizer
def test_set_master_makes_all_of_the_state(record: Record) -> None:
    """Or torch.distributed.checkpoint would take what is there for all. The steps are as without."""
    x = values((5, 3), torch.float32, 1)
    exact, wide, _ = exact_pair(record, record.typical, [x], "cpu")
    (p,) = params_of(exact)
    gradients = Gradients()
    made = set(exact.state[p])
    for _ in range(3):
        step_both(exact, wide, gradients)
    assert set(exact.state[p]) == made
    assert_equal_weights(exact, wide)


def test_a_first_buffer_beside_stepped_ones_is_new() -> None:
    """SGD's first gradient enters undampened, whenever set_master has made the buffer."""
    starts = [values((5, 3), torch.float32, seed) for seed in range(2)]
    params = [start.to(BF16) for start in starts]
    exact = onepass.SGD(params, lr=0.1, momentum=0.9, dampening=0.5, master_weights=True)
    wide = onepass.SGD(models := [p.float() for p in params], lr=0.1, momentum=0.9, dampening=0.5)
    for round, stepped in enumerate(([0], [0, 1], [0, 1])):
        if round == 1:
            exact.set_master(params[1], starts[1])
            models[1].copy_(starts[1])
        for i in stepped:
            params[i].grad = values((5, 3), BF16, 10 * round + i)
            models[i].grad = params[i].grad.float()
        exact.step()
        wide.step()
    assert_equal_weights(exact, wide)


def test_set_master_in_inference_mode() -> None:
    p, x = torch.nn.Parameter(torch.zeros(5, 3, dtype=BF16)), values((5, 3), torch.float32, 1)
    opt = onepass.AdamW([p], master_weights=True)
    with torch.inference_mode():
        opt.set_master(p, x)
    opt.set_master(p, 2 * x)
    p.grad = torch.ones_like(p)
    opt.step()


@each_optimizer
def test_a_remainder_that_is_stale_is_dropped(record: Record) -> None:
    p = torch.nn.Parameter(values((5, 3), BF16, 1))
    opt = record.make(
        [p], master_weights=True, **{**record.typical, **({"momentum": 0} if "SGD" in record.name else {})}
    )
    for dtype in (BF16, torch.float32):
        p.grad = None
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)
        opt.step()
    assert MASTER not in opt.state.get(p, {})


def test_what_master_and_set_master_refuse() -> None:
    p = torch.zeros(5, 3, dtype=BF16)
    opt = onepass.AdamW([p], master_weights=True)
    for wrong in (None, torch.nn.Linear(1, 1)):
        with pytest.raises(ValueError, match=r"p must be a parameter of this optimizer, got"):
            opt.master(wrong)  # type: ignore[arg-type]
    for x in (1.0, torch.zeros(5, 3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"x must be a tensor of real numbers, got (1.0|torch.complex64)"):
            opt.set_master(p, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"p must be a parameter of this optimizer, got a tensor of shape \(2,\)"):
        opt.master(torch.zeros(2))
    with pytest.raises(ValueError, match=r"x must have the parameter's shape \(5, 3\), got \(3, 5\)"):
        opt.set_master(p, torch.zeros(3, 5))
    opt.state[p][MASTER] = torch.ones(5, 3)
    for use in (lambda: opt.master(p), lambda: opt.set_master(p, torch.zeros(5, 3))):
        with pytest.raises(ValueError, match=r"its state 'master_param' must be a dense torch.int16 tensor"):
            use()


@each_optimizer
def test_float16_is_refused(record: Record) -> None:
    p = torch.zeros(3, dtype=torch.float16)
    with pytest.raises(
        TypeError, match=r"parameter 0 of group 0.*torch.float16; convert .* torch.bfloat16 or torch.float32"
    ):
        record.make([p], lr=1e-3, master_weights=True)


@each_backend
def test_the_option_changes_between_steps(backend: str) -> None:
    """Switched on, the weight is the parameter; switched off, the remainder is dropped."""
    p = values((5, 3), BF16, 1)
    opt = onepass.AdamW([p], lr=1e-4, backend=backend)

    def step() -> None:
        p.grad = torch.ones_like(p)
        opt.step()

    step()
    before = p.float()
    opt.param_groups[0]["master_weights"] = True
    assert torch.equal(opt.master(p), before)
    step()
    assert bool((opt.master(p) != before).all())
    opt.param_groups[0]["master_weights"] = False
    step()
    assert MASTER not in opt.state[p] and opt.master(p).dtype == BF16


# ------------------------------------------------------------------ state


def trained(**more: Any) -> tuple[Any, Tensor]:
    p = values((9, 33), BF16, 1)
    opt = onepass.AdamP([p], lr=1e-3, master_weights=True, **more)
    for seed in range(3):
        p.grad = values(p.shape, BF16, seed)
        opt.step()
    return opt, p


def again(p: Tensor, **arguments: Any) -> tuple[Any, Tensor]:
    q = p.clone()
    return onepass.AdamP([q], lr=1e-3, **{"master_weights": True, **arguments}), q


def test_resumed_is_unbroken() -> None:
    opt, p = trained()
    other, q = again(p)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    for seed in range(3):
        for one, x in ((opt, p), (other, q)):
            x.grad = values(x.shape, BF16, 10 + seed)
            one.step()
    assert_same_state(opt, other)
    assert_same_bits(opt.master(p), other.master(q), "weight")


def test_a_pickle_and_a_deep_copy() -> None:
    opt, p = trained()
    other = copy.deepcopy(opt)
    (q,) = params_of(other)
    assert_same_bits(opt.master(p), other.master(q), "weight")


def test_float32_weights_are_loaded_exactly() -> None:
    """TransformerEngine's and apex's masters; theirs may round the parameter's ties to even."""
    opt, p = trained()
    saved = opt.state_dict()
    x = opt.master(p).clone()
    x[0, 0] = 1 + 2.0**-8
    saved["state"][0][MASTER] = x
    other, q = again(x.to(BF16))
    other.load_state_dict(saved)
    assert_same_bits(other.master(q), x, "weight")
    assert_same_bits(q, split(x)[0], "parameter")


def test_a_hook_sees_weights_that_were_loaded() -> None:
    opt, p = trained()
    saved, x = opt.state_dict(), opt.master(p)
    saved["state"][0][MASTER] = x
    other, q = again(torch.zeros_like(p))
    seen = []
    other.register_load_state_dict_post_hook(lambda loaded: seen.append(loaded.master(q)))
    other.load_state_dict(saved)
    assert_same_bits(seen[0], x, "weight")


def test_without_masters_remainders_are_dropped() -> None:
    opt, p = trained()
    other, q = again(p, master_weights=False)
    other.load_state_dict(opt.state_dict())
    assert_same_bits(p, q, "parameter")
    assert MASTER not in other.state[q] and not other.param_groups[0]["master_weights"]


def test_a_state_dict_without_masters() -> None:
    opt, p = trained()
    saved = opt.state_dict()
    del saved["state"][0][MASTER]
    saved["param_groups"][0].pop("master_weights")
    other, q = again(p)
    other.load_state_dict(saved)
    assert other.param_groups[0]["master_weights"] is True
    assert torch.equal(other.master(q), q.float())
    q.grad = torch.ones_like(q)
    other.step()
    assert bool(other.state[q][MASTER].any())


@pytest.mark.parametrize(
    ("cast", "message"),
    [
        (lambda r: r.to(BF16), r"must be torch.int16, the remainder, or torch.float32, the weight, got torch.bfloat16"),
        (lambda r: r.to(torch.float32), r"it is a remainder that was cast"),
        (lambda r: r.to(torch.int64), r"must be torch.int16"),
        (lambda r: r[:3], r"has shape \(3, 33\), but the parameter has shape \(9, 33\)"),
        (lambda r: 3, r"must be a tensor, got 3"),
    ],
)
def test_remainders_that_were_cast_are_refused(cast: Any, message: str) -> None:
    opt, p = trained()
    saved = opt.state_dict()
    saved["state"][0][MASTER] = cast(saved["state"][0][MASTER])
    other, q = again(p)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved)
    assert_same_bits(p, q, "parameter")


@each_backend
def test_a_remainder_of_another_dtype_is_refused_at_a_step(backend: str) -> None:
    opt, p = trained(backend=backend)
    before = p.clone()
    opt.state[p][MASTER] = opt.state[p][MASTER].float()
    p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match=r"its state 'master_param' must be a dense torch.int16 tensor"):
        opt.step()
    assert_same_bits(p, before, "parameter")


def test_the_state_dict_for_torch() -> None:
    p = values((9, 33), BF16, 1)
    opt = onepass.AdamW([p], master_weights=True)
    p.grad = torch.ones_like(p)
    opt.step()
    saved = opt.state_dict_for("torch")
    assert saved["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq"}
    theirs = torch.optim.AdamW([p])
    theirs.load_state_dict(saved)
    theirs.step()
    assert MASTER in opt.state[p]
    with pytest.raises(ValueError, match=r"library must be 'torch', got 'apex'"):
        opt.state_dict_for("apex")  # type: ignore[arg-type]
