"""Moments of 8 bits: the format, and the same bits on every backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits, assert_within
from onepass.blocks import BLOCK, NAN, NEAREST, decoded, encoded, scale_shape
from oracles import Arguments
from precisions import BLOCKS, F32, each_with_blocks, run
from records import RECORDS, Record, each_backend, each_compiled
from side_by_side import UNITS
from tensors import LAYOUTS, Guarded, gradient, values

# Rows of less than a block and more, of parts of a vector, of any alignment; and tensors without blocks.
SHAPES = [
    (4099,), (64, 64), (5, 1001), (16, 257), (14, 65, 5), (170, 27), (2, 2, 1100), (3, 5),
]  # fmt: skip
PIECES = [(2, 33001), (66001,)]  # rows that are cut
OF_ADAM = [record for record in RECORDS.values() if len(record.moments) > 1]
each_of_adam = pytest.mark.parametrize("record", OF_ADAM, ids=lambda record: record.name)
each_variant_of_adam = pytest.mark.parametrize(
    ("record", "arguments"),
    [pytest.param(r, own, id=f"{r.name}-{name}") for r in OF_ADAM for name, own in r.variants.items()],
)


@each_compiled
@each_with_blocks
@each_variant_of_adam
def test_variants(backend: str, precision: str, record: Record, arguments: Arguments) -> None:
    run(precision, record, arguments, SHAPES, backend, 2)


@each_compiled
@each_with_blocks
@pytest.mark.parametrize("layout", LAYOUTS)
@each_of_adam
def test_layouts(backend: str, precision: str, layout: str, record: Record) -> None:
    """Blocks go by the order of the shape, whatever the layout."""
    run(precision, record, record.typical, SHAPES[-5:], backend, 2, layout=LAYOUTS[layout])


@each_compiled
@each_with_blocks
@each_of_adam
def test_long_rows(backend: str, precision: str, record: Record) -> None:
    run(precision, record, record.typical, PIECES, backend, 2)


@pytest.mark.parametrize("threads", [1, 2, 3])
@each_with_blocks
@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_threads(threads: int, precision: str, name: str) -> None:
    run(precision, RECORDS[name], RECORDS[name].typical, [(40, 1025)], "cpu", 2, threads=threads)


@each_compiled
@each_with_blocks
@each_of_adam
def test_aligned_tensors(backend: str, precision: str, record: Record) -> None:
    """Operands that are accessed a vector at a time. Layouts elsewhere in this file put guards around them."""
    dtype, options = BLOCKS[precision]
    made = []
    for name in (backend, "reference"):
        params = [values(shape, dtype, 1, 0.7) for shape in [(64, 64), (8, 1024), (9, 260), (5, 4096), (66000,)]]
        opt = record.make(params, backend=name, **{**record.typical, **options})
        for step in range(2):
            for p in params:
                p.grad = values(p.shape, dtype, 7 + step)
            opt.step()
            if record.projected:
                break  # weights of 16 bits may be apart by then
        made.append(opt)
    a, b = made
    for p, q in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], strict=True):
        assert_same_moments(a, b, p, q)
        if record.projected and p.dim() > 1:
            assert_within(
                a.master(p).float(),
                b.master(q).float(),
                q.float().abs() + 1,
                UNITS if dtype == F32 else 2**17,
                "weight",
            )
        else:
            assert_same_bits(p, q, "parameter")


@each_compiled
@pytest.mark.parametrize("precision", ["blocks", "exact_blocks"])
def test_operands_that_lie_alike_between_vectors(backend: str, precision: str) -> None:
    """All at the same distance from a boundary, which rows of whole vectors do not mend."""
    dtype, options = BLOCKS[precision]
    made = []
    for name in (backend, "reference"):
        p = values((16, 300), dtype, 1) if name == "reference" else Guarded(values((16, 300), dtype, 1)).tensor
        opt = onepass.AdamW([p], backend=name, lr=1e-2, **options)
        for step in range(3):
            g = values((16, 300), dtype, 7 + step)
            p.grad = g if name == "reference" else Guarded(g).tensor
            opt.step()
            own = opt.state[p]
            for key in ("exp_avg", "exp_avg_sq", "master_param") if name != "reference" else ():
                if key in own:
                    own[key] = Guarded(own[key]).tensor
        made.append((opt, p))
    (a, p), (b, q) = made
    assert_same_moments(a, b, p, q)
    assert_same_bits(p, q, "parameter")


def assert_same_moments(a: Any, b: Any, p: Tensor, q: Tensor) -> None:
    for key in ("exp_avg", "exp_avg_sq"):
        for each in (key, f"{key}_scale"):
            assert (each in a.state[p]) == (each in b.state[q])
            if each in a.state[p]:
                assert torch.equal(a.state[p][each], b.state[q][each]), each


@each_compiled
@each_with_blocks
def test_numbers_of_any_size(backend: str, precision: str) -> None:
    """From subnormal ones to those whose squares overflow, in blocks of one size and of all."""
    dtype, options = BLOCKS[precision]
    sizes = 10.0 ** torch.linspace(-45, 30, 4200, dtype=torch.float64).reshape(14, 300)
    mixed = sizes.flatten()[torch.randperm(4200, generator=torch.Generator().manual_seed(1))].reshape(14, 300)
    made = []
    for name in (backend, "reference"):
        params = [values((14, 300), dtype, 1) for _ in range(2)]
        opt = onepass.AdamW(params, backend=name, lr=1e-3, **options)
        for step in range(3):
            for p, size in zip(params, (sizes, mixed), strict=True):
                p.grad = (size * values((14, 300), torch.float64, 5 + step)).to(dtype)
            opt.step()
        made.append(opt)
    for p, q in zip(made[0].param_groups[0]["params"], made[1].param_groups[0]["params"], strict=True):
        assert_same_moments(made[0], made[1], p, q)
        assert_same_bits(p, q, "parameter")


# ------------------------------------------------------------------ the format


def stored(x: Tensor, bits: Tensor | None = None) -> Tensor:
    return decoded(*encoded(x, bits), signed=bits is None)


def random_bits(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randint(0, 1 << 20, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("signed", [True, False])
def test_every_code_is_kept(signed: bool) -> None:
    """All that can be stored is stored as it is, under every scale, whatever is added before the cut."""
    scales = 254 - (15 if signed else 31)
    codes = torch.arange(256, dtype=torch.uint8).expand(scales, 256).clone()
    codes[codes == 0x80] = 0 if signed else 0x80  # there is no negative zero
    scale = torch.arange(1, scales + 1, dtype=torch.uint8)[:, None]
    x = decoded(codes, scale, signed)
    assert bool(x.isfinite().all()) and (signed or bool((x >= 0).all()))
    again = stored(x) if signed else stored(x, torch.zeros_like(x, dtype=torch.int64))
    assert_same_bits(again, x, "number")
    assert len(x[5].unique()) == (255 if signed else 256)


def test_the_first_moment_is_rounded_to_nearest() -> None:
    x = values((40, 700), F32, 1) * 2.0 ** torch.randint(-20, 20, (40, 1), generator=torch.Generator().manual_seed(2))
    y, largest = stored(x), block_max(x)
    normal = x.abs() >= 2.0**-14 * largest
    unit = 2.0 ** (x.double().abs().log2().floor() - 3)
    assert bool(((y.double() - x.double()).abs() <= unit / 2)[normal].all())
    assert bool((y.abs() <= 2.0**-13 * largest)[~normal].all())


def block_max(x: Tensor) -> Tensor:
    """The largest magnitude of the block of each element."""
    parts = [part.abs().amax(1, keepdim=True).expand_as(part) for part in x.flatten(1).split(BLOCK, 1)]
    return torch.cat(parts, 1).reshape(x.shape)


def test_the_second_moment_is_right_on_average_and_never_becomes_zero() -> None:
    x = values((16, 700), F32, 1).square() * 10.0 ** (
        -9 * torch.rand(16, 700, generator=torch.Generator().manual_seed(1))
    )
    x[3, 5], x[4] = 0.0, 0.0
    total, count = torch.zeros_like(x, dtype=torch.float64), 400
    for seed in range(count):
        y = stored(x, random_bits((16, 700), seed))
        assert torch.equal(y == 0, x == 0)
        total += y
    normal = x > 2.0**-28 * block_max(x)
    unit = 2.0 ** (x.double().log2().floor() - 3)
    error = ((total / count - x) / unit)[normal]
    assert float(error.abs().max()) < 0.15 and abs(float(error.mean())) < 0.002


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("signed", [True, False])
def test_what_is_not_finite_takes_its_block(bad: float, signed: bool) -> None:
    x = torch.ones(3, 700)
    x[1, 300] = bad if signed else abs(bad)
    x[1, 301] = 0.0
    codes, scales = encoded(x, None if signed else random_bits((3, 700), 1))
    assert scales[1, 1] == NAN and int((scales == NAN).sum()) == 1
    gone = decoded(codes, scales, signed).isnan().nonzero()
    assert gone.tolist() == [[1, i] for i in range(256, 512)]


def test_zeros_need_no_scale() -> None:
    for bits in (None, random_bits((2, 300), 1)):
        codes, scales = encoded(torch.zeros(2, 300), bits)
        assert not codes.any() and not decoded(codes, scales, bits is None).any()
        assert not decoded(codes, torch.zeros_like(scales), bits is None).any()


def test_a_part_of_the_rows_has_their_blocks() -> None:
    x, bits = values((6, 3, 100), F32, 1).abs(), random_bits((6, 3, 100), 1)
    codes, scales = encoded(x, bits)
    assert scales.shape == scale_shape(x.shape) == (6, 2)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        for whole, part in zip((codes, scales), encoded(x[rows], bits[rows]), strict=True):
            assert torch.equal(whole[rows], part)


def test_the_largest_number_can_be_rounded_up() -> None:
    """To nearest and by the largest random bits: a block's scale leaves room for it."""
    for mantissa in (1.0, 1.9374, 1.9376, 1.99999988):
        x = torch.tensor([mantissa, 2.0**-40])
        assert float(stored(x)[0]) == pytest.approx(mantissa, rel=1 / 16)
        assert float(stored(x, torch.tensor([(1 << 20) - 1] * 2))[0]) >= mantissa


# ------------------------------------------------------------------ training with it


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_second_moment_does_not_stall(backend: str) -> None:
    """Gradients fall 30 times: to nearest, v would stay twice too large."""
    p = torch.zeros(64, 100)
    opt = onepass.AdamW([p], lr=0.0, state_dtype="8bit", backend=backend)
    exact = torch.zeros(64, 100, dtype=torch.float64)
    for step in range(2500):
        p.grad = values((64, 100), F32, step % 50, 1.0 if step < 500 else 1 / 30)
        exact = 0.999 * exact + 0.001 * p.grad.double() ** 2
        opt.step()
        if step in (499, 2499):
            own = opt.state[p]
            v = decoded(own["exp_avg_sq"], own["exp_avg_sq_scale"], signed=False).double()
            assert bool((v > 0).all()) and 0.98 < float((v / exact).mean()) < 1.02


@each_backend
def test_one_step(backend: str) -> None:
    """Written out: moments from 0, u of them as they are stored."""
    p, g = values((9, 500), F32, 1), values((9, 500), F32, 2)
    opt = onepass.AdamW([values((3,), F32, 1), p], lr=0.25, weight_decay=0, state_dtype="8bit", seed=9, backend=backend)
    x, p.grad = p.clone(), g
    opt.step()
    from onepass.draws import draws

    m = stored((1 - 0.9) * g)
    v = stored((1 - 0.999) * (g * g), draws(9, 1, 1, p.shape, p.device) >> 12)
    own = opt.state[p]
    assert_same_bits(decoded(own["exp_avg"], own["exp_avg_scale"], True), m, "m")
    assert_same_bits(decoded(own["exp_avg_sq"], own["exp_avg_sq_scale"], False), v, "v")
    u = m / (v.double().sqrt().float() * (1 / math.sqrt(1 - 0.999)) + 1e-8)
    assert_same_bits(p, x - 0.25 / (1 - 0.9) * u, "p")


@each_backend
@each_with_blocks
def test_nan_stays_in_its_block(backend: str, precision: str) -> None:
    dtype, options = BLOCKS[precision]
    p = values((9, 500), dtype, 1)
    opt = onepass.AdamW([p], backend=backend, **options)
    p.grad = torch.ones_like(p)
    p.grad.view(torch.int32 if dtype == F32 else torch.int16)[2, 300] = 0x7FFFFFFF if dtype == F32 else 0x7FFF
    for _ in range(2):
        opt.step()
        own = opt.state[p]
        gone = [[2, i] for i in range(256, 500)]
        for signed, key in ((True, "exp_avg"), (False, "exp_avg_sq")):
            assert decoded(own[key], own[f"{key}_scale"], signed).isnan().nonzero().tolist() == gone
        assert p.isnan().nonzero().tolist() == opt.master(p).isnan().nonzero().tolist() == gone


@each_compiled
@pytest.mark.parametrize("precision", ["blocks", "exact_blocks"])
@pytest.mark.parametrize("gate", ["none", "channel", "layer"])
@pytest.mark.parametrize("counter", [0, 3])
def test_a_wrong_prediction_is_corrected(backend: str, precision: str, gate: str, counter: int) -> None:
    dtype, options = BLOCKS[precision]
    made, record = [], RECORDS["AdamP"]
    for speculate in (True, False):
        starts = [values(shape, dtype, 1) for shape in [(20, 333), (32, 1025), (2, 33000)]]
        opt = record.make(starts, backend=backend, **{**record.typical, **options, "speculate": speculate})
        for p in starts:
            opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)
            p.grad = gradient(gate, p, 3)
        sizes = [p.float().abs() + p.grad.float().abs() for p in starts]
        opt.step()
        assert [verdict.gate for verdict in opt.last_step().values()] == [gate] * 3
        if speculate:
            wrong = gate != ("channel" if counter else "none")
            assert {verdict.corrected for verdict in opt.last_step().values()} == {wrong}
        made.append(opt)
    a, b = made
    for p, q, size in zip(a.param_groups[0]["params"], b.param_groups[0]["params"], sizes, strict=True):
        assert_same_moments(a, b, p, q)
        assert_within(a.master(p), b.master(q), size, UNITS, "weight")


@each_backend
@each_with_blocks
@pytest.mark.parametrize(
    "record", [record for record in OF_ADAM if not record.projected], ids=lambda record: record.name
)
def test_shards_by_rows_have_the_bits_of_the_whole(backend: str, precision: str, record: Record) -> None:
    """Of elementwise rules, where a shard is as large as a tensor with blocks, and nothing is drawn for p: the draws of a shard
    are those of another tensor. So v is compared where its draws are the same: in the first shard."""
    dtype, options = BLOCKS[precision]
    whole, g = values((32, 300), dtype, 1), values((32, 300), dtype, 2)
    parts = [whole[:14].clone(), whole[14:].clone()]
    made = []
    for params, grads in (([whole], [g]), (parts, [g[:14].clone(), g[14:].clone()])):
        opt = record.make(params, backend=backend, **{**record.typical, **options})
        for p, own in zip(params, grads, strict=True):
            p.grad = own
        opt.step()
        made.append(opt)
    own = made[0].state[whole]
    first, second = (made[1].state[p] for p in parts)
    for key in ("exp_avg", "exp_avg_scale"):
        assert torch.equal(own[key], torch.cat([first[key], second[key]])), key
    for key in ("exp_avg_sq", "exp_avg_sq_scale"):
        assert torch.equal(own[key][:14], first[key]), key
    assert torch.equal(own["exp_avg_sq_scale"], torch.cat([first["exp_avg_sq_scale"], second["exp_avg_sq_scale"]]))
    assert_same_bits(whole[:14], parts[0], "parameter")


def test_nearest_is_what_loading_uses() -> None:
    """There are no draws then: half a unit is added."""
    p = values((16, 300), F32, 1)
    opt = onepass.AdamW([p])
    p.grad = values((16, 300), F32, 2)
    opt.step()
    other = onepass.AdamW([p], state_dtype="8bit")
    other.load_state_dict(opt.state_dict())
    v = opt.state[p]["exp_avg_sq"]
    codes, scales = encoded(v, torch.full(v.shape, NEAREST))
    assert torch.equal(other.state[p]["exp_avg_sq"], codes) and torch.equal(other.state[p]["exp_avg_sq_scale"], scales)
