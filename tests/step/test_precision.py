"""state_dtype, stochastic_rounding and seed: short moments and rounded weights, the same bits on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits, assert_same_state, assert_within
from emulated_backend import emulated
from onepass.draws import draws, rounded
from onepass.sharding import Shard
from oracles import Arguments
from precisions import BF16, F32, SHORT, each_short_precision, run, trained
from records import Record, each_backend, each_compiled, each_optimizer, each_projected, each_variant
from side_by_side import UNITS
from tensors import LARGE_SHAPES, LAYOUTS, SMALL_SHAPES, gradient, values

each_precision = each_short_precision
each_short = pytest.mark.parametrize("precision", [name for name in SHORT if "short" in name])


@each_compiled
@each_precision
@each_variant
def test_variants(backend: str, precision: str, record: Record, arguments: Arguments) -> None:
    run(precision, record, arguments, SMALL_SHAPES, backend, 3)


@each_compiled
@each_precision
@pytest.mark.parametrize("layout", LAYOUTS)
@each_optimizer
def test_layouts(backend: str, precision: str, layout: str, record: Record) -> None:
    """Random bits go by the order of the shape, whatever the layout."""
    run(precision, record, record.typical, SMALL_SHAPES, backend, 2, layout=LAYOUTS[layout])


@each_compiled
@each_precision
@each_optimizer
def test_large_tensors(backend: str, precision: str, record: Record) -> None:
    run(precision, record, record.typical, LARGE_SHAPES, backend, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@each_precision
@each_optimizer
def test_threads(threads: int, precision: str, record: Record) -> None:
    run(precision, record, record.typical, [(40, 1025), (70000,)], "cpu", 2, threads=threads)


# ------------------------------------------------------------------ random bits


def drawn(seed: int = 0, step: int = 1, number: int = 0, count: int = 1 << 18, first: int = 0) -> Tensor:
    part = Shard((first + count,), first, split=False)
    return draws(seed, step, number, torch.Size([count]), torch.device("cpu"), part)


@pytest.mark.parametrize("first", [0, 5, (1 << 32) - 7, (3 << 32) - 7, 1 << 40])
def test_the_kernels_draw_what_the_reference_draws(first: int) -> None:
    for seed, step, number in [(0, 1, 0), (7, 2, 1), ((1 << 64) - 1, 1 << 24, 70000), (1 << 32, 3, 0)]:
        want = drawn(seed, step, number, 20, first)
        assert [emulated.draw(seed, step, number, first + i) for i in range(20)] == want.tolist()


def test_random_bits_look_random() -> None:
    """Each half is uniform, and uncorrelated with the other, with that of neighbours, and of other steps, tensors and seeds."""
    base, count = drawn(), 1 << 18

    def standard(bits: Tensor) -> Tensor:
        return (bits.double() - 32767.5) / math.sqrt((65536**2 - 1) / 12)

    def z(a: Tensor, b: Tensor) -> float:
        return float((a * b).sum()) / math.sqrt(len(a))

    others = [
        drawn(step=2),
        drawn(step=1001),
        drawn(number=1),
        drawn(seed=1),
        drawn(seed=1 << 32),
        drawn(first=1 << 32),
    ]
    for half in (lambda bits: standard(bits & 0xFFFF), lambda bits: standard(bits >> 16)):
        x = half(base)
        assert abs(float(x.mean())) * math.sqrt(count) < 4
        for lag in (1, 2, 3, 16, 1024, 4096):
            assert abs(z(x[lag:], x[:-lag])) < 4, lag
        for other in others:
            for their in (half(other), standard(other & 0xFFFF), standard(other >> 16)):
                assert abs(z(x, their)) < 4
    assert abs(z(standard(base & 0xFFFF), standard(base >> 16))) < 4
    for bits in (base & 0xFFFF, base >> 16):
        counts = torch.bincount(bits >> 4, minlength=4096).double()
        chi = float(((counts - count / 4096) ** 2 / (count / 4096)).sum())
        assert abs(chi - 4095) / math.sqrt(2 * 4095) < 4


def test_a_part_of_a_tensor_has_its_bits() -> None:
    whole = drawn(count=1000)
    for cut in (1, 333, 999):
        assert torch.equal(torch.cat([drawn(count=cut), drawn(count=1000 - cut, first=cut)]), whole)


def test_rounding_is_to_a_neighbour_and_right_on_average() -> None:
    x = values((4096,), F32, 1)
    sum = torch.zeros_like(x, dtype=torch.float64)
    for step in range(256):
        y = rounded(x, drawn(step=step, count=4096) & 0xFFFF)
        assert bool(((y.view(torch.int32) & 0xFFFF) == 0).all())
        sum += y.double()
    unit = 2.0 ** (x.double().abs().log2().floor() - 7)
    assert bool(((sum / 256 - x.double()).abs() < 0.2 * unit).all())
    assert abs(float(((sum / 256 - x.double()) / unit).mean())) < 0.002
    exact = torch.tensor([0.0, -0.0, 1.0, math.inf, -math.inf, 2.0**-133])
    assert_same_bits(rounded(exact, torch.full((6,), 0xFFFF)), exact, "numbers of bfloat16")
    for payload in (0x7FFFFFFF, 0x7F800001, -1):
        nan = torch.tensor([payload], dtype=torch.int32).view(F32)
        assert bool(rounded(nan, torch.tensor([0xFFFF])).isnan())


@each_backend
def test_small_steps_add_up(backend: str) -> None:
    """1,000 steps of 1e-5 from 1, which is below half a unit: on average they arrive, where nearest stays at 1."""
    steps, count = (1000, 32768) if backend in ("cpu", "emulated") else (50, 32768)
    p = torch.ones(count, dtype=BF16)
    opt = onepass.SGD([p], lr=1.0, stochastic_rounding=True, backend=backend)
    p.grad = torch.full_like(p, -1e-5)
    step = -float(p.grad[0])
    for _ in range(steps):
        opt.step()
    x = p.double()
    # Each step goes up by a unit of 2^-7 with probability step/2^-7: binomial.
    spread = math.sqrt(steps * step * (2.0**-7 - step))
    assert abs(float(x.mean()) - 1 - steps * step) < 4 * spread / math.sqrt(count)
    assert float(x.std()) == pytest.approx(spread, rel=0.05)


@each_backend
@pytest.mark.parametrize("what", ["seed", "step", "tensor"])
def test_bits_depend_on(backend: str, what: str) -> None:
    """Two steps of the same numbers are rounded differently if the seed, the step or the tensor differs."""
    p, q = (torch.full((4096,), 1 + 2.0**-8, dtype=F32).to(BF16) for _ in range(2))
    both = {"backend": backend, "lr": 2.0**-9, "stochastic_rounding": True}
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    if what == "seed":
        for x, seed in ((p, 0), (q, 1)):
            onepass.SGD([x], seed=seed, **both).step()
    elif what == "step":
        opt = onepass.SGD([p], **both)
        opt.step()
        q.copy_(p)
        p.fill_(1.0)
        opt.step()
    else:
        onepass.SGD([p, q], **both).step()
    assert 0.2 < float((p != q).double().mean()) < 0.8


@each_backend
@each_precision
def test_the_same_seed_gives_the_same_bits_and_no_generator_is_touched(backend: str, precision: str) -> None:
    before = torch.get_rng_state()
    a, _ = trained(precision, backend, 2)
    torch.rand(3)
    torch.set_rng_state(before)
    b, _ = trained(precision, backend, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_state(a, b)


@each_backend
def test_the_number_of_a_tensor_is_that_of_the_state_dict(backend: str) -> None:
    """Whichever group or backend it is in, and whether or not the ones before it have gradients."""
    made = []
    for split in (False, True):
        params = [values((64,), BF16, 1) for _ in range(4)]
        groups = [{"params": params[:2], "backend": "reference"}, {"params": params[2:]}] if split else params
        opt = onepass.AdamW(groups, stochastic_rounding=True, state_dtype=BF16, backend=backend)
        for p in params[1:]:
            p.grad = torch.ones_like(p)
        opt.step()
        made.append(params)
    for p, q in zip(*made, strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
def test_a_step_that_was_skipped_draws_nothing(backend: str) -> None:
    made = []
    for overflows in ([0.0, 1.0, 0.0], [0.0, 0.0]):
        p = values((9, 33), BF16, 1)
        opt = onepass.AdamP([p], lr=0.01, stochastic_rounding=True, state_dtype=BF16, backend=backend)
        for overflow in overflows:
            p.grad = values(p.shape, BF16, 2)
            opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(overflow)
            opt.step()
        made.append(p)
    assert_same_bits(*made, "parameter")


@each_precision
@each_optimizer
def test_capturable(precision: str, record: Record) -> None:
    a, _ = trained(precision, "emulated", 3, record.name, capturable=True)
    b, _ = trained(precision, "emulated", 3, record.name)
    assert_same_state(a, b)


@each_backend
def test_one_step(backend: str) -> None:
    """Written out: v by the upper halves of the draws, p by the lower, and u of the moments as they are stored."""
    p, g = values((7, 33), BF16, 1), values((7, 33), BF16, 2)
    opt = onepass.AdamW(
        [values((3,), BF16, 1), p], lr=0.25, weight_decay=0, stochastic_rounding=True, state_dtype=BF16, backend=backend
    )
    x, bits, p.grad = p.float(), draws(0, 1, 1, p.shape, p.device), g
    opt.step()
    m = ((1 - 0.9) * g.float()).to(BF16)
    v = rounded((1 - 0.999) * (g.float() * g.float()), bits >> 16)
    assert_same_bits(opt.state[p]["exp_avg"], m, "m")
    assert_same_bits(opt.state[p]["exp_avg_sq"], v.to(BF16), "v")
    u = m.float() / (v.double().sqrt().float() * (1 / math.sqrt(1 - 0.999)) + 1e-8)
    assert_same_bits(p, rounded(x - 0.25 / (1 - 0.9) * u, bits & 0xFFFF).to(BF16), "p")


# ------------------------------------------------------------------ moments


@each_backend
@each_short
def test_moments_are_rounded_from_those_of_float32(backend: str, precision: str) -> None:
    """The first to nearest, the second to one of its neighbours."""
    dtype, options = SHORT[precision]
    p = values((40, 65), dtype, 1)
    opt = onepass.AdamW([p], backend=backend, **options)
    p.grad = values(p.shape, dtype, 2)
    opt.step()
    g, own = p.grad.float(), opt.state[p]
    m, v = (1 - 0.9) * g, (1 - 0.999) * (g * g)
    assert_same_bits(own["exp_avg"], m.to(BF16), "m")
    assert own["exp_avg_sq"].dtype == BF16
    error = (own["exp_avg_sq"].double() - v.double()) / 2.0 ** (v.double().log2().floor() - 7)
    assert bool((error.abs() < 1).all()) and abs(float(error.mean())) < 0.05
    assert float((own["exp_avg_sq"] != v.to(BF16)).double().mean()) > 0.1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_second_moment_does_not_stall(backend: str) -> None:
    """Gradients fall 30 times: to nearest, v would stay 7 times too large."""
    p = torch.zeros(4096)
    opt = onepass.AdamW([p], lr=0.0, state_dtype=BF16, backend=backend)
    exact = torch.zeros(4096, dtype=torch.float64)
    for step in range(2500):
        p.grad = values((4096,), F32, step % 50, 1.0 if step < 500 else 1 / 30)
        exact = 0.999 * exact + 0.001 * p.grad.double() ** 2
        opt.step()
    assert 0.98 < float((opt.state[p]["exp_avg_sq"].double() / exact).mean()) < 1.02


@each_compiled
@each_projected
@pytest.mark.parametrize("precision", ["short_moments", "exact_short_moments"])
@pytest.mark.parametrize("gate", ["none", "channel", "layer"])
@pytest.mark.parametrize("counter", [0, 3])
def test_a_wrong_prediction_is_corrected(backend: str, record: Record, precision: str, gate: str, counter: int) -> None:
    """u is made of the moments as they are stored, so that the correction finds it again."""
    dtype, options = SHORT[precision]
    made = []
    for speculate in (True, False):
        starts = [values(shape, dtype, 1) for shape in [(6, 33), (32, 1025), (2, 33000)]]
        opt = record.make(starts, backend=backend, **{**record.typical, **options, "speculate": speculate})
        for p in starts:
            opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)
            p.grad = gradient(gate, p, 3)
        sizes = [p.float().abs() + p.grad.float().abs() for p in starts]
        opt.step()
        assert [verdict.gate for verdict in opt.last_step().values()] == [gate] * 3
        made.append([opt.master(p) for p in starts])
        if speculate:
            wrong = gate != ("channel" if counter else "none")
            assert {verdict.corrected for verdict in opt.last_step().values()} == {wrong}
    for a, b, size in zip(*made, sizes, strict=True):
        assert_within(a, b, size, UNITS, "weight")


@each_backend
def test_nan_stays_where_it_is(backend: str) -> None:
    for precision, (dtype, options) in SHORT.items():
        p = values((40,), dtype, 1)
        opt = onepass.AdamW([p], backend=backend, **options)
        p.grad = torch.ones_like(p)
        p.grad[3] = math.nan
        opt.step()
        own = opt.state[p]
        for x in (p, own["exp_avg"], own["exp_avg_sq"], opt.master(p)):
            assert x.isnan().nonzero().tolist() == [[3]], precision


@each_backend
def test_nan_of_any_payload_stays(backend: str) -> None:
    """That of CUDA's arithmetic has all bits set, which rounding would carry into the sign."""
    for precision, (dtype, options) in SHORT.items():
        p = values((40,), dtype, 1)
        opt = onepass.AdamW([p], backend=backend, **options)
        p.grad = torch.ones_like(p)
        opt.step()
        p.grad.view(torch.int32 if dtype == F32 else torch.int16)[3] = 0x7FFFFFFF if dtype == F32 else 0x7FFF
        for _ in range(2):
            opt.step()
            own = opt.state[p]
            for x in (p, own["exp_avg"], own["exp_avg_sq"]):
                assert x.isnan().nonzero().tolist() == [[3]], precision
