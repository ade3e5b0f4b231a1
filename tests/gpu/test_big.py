"""Tensors of more than 2^31 elements: offsets, in elements and in bytes, that exceed 32 bits.

The reference steps windows of them: at the ends, and around 2^31 and 2^32 bytes of weights and moments.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

import onepass
import truth
from compare import assert_same_bits, assert_within
from gpu.target import BACKEND, DEVICE, ON_CUDA, pick, to_host
from side_by_side import UNITS

BIG = pick(2**31, 2**13)
N = BIG + 1000
COLUMNS = 1025
ROWS = BIG // COLUMNS + 40
WIDTH = pick(5000, 500)
CHUNK = pick(2**27, 2**12)
NEEDED = 34e9  # 12 bytes per element, and the chunks of the comparison


@pytest.fixture(autouse=True)
def room() -> Iterator[None]:
    """Skips if free memory is too small, and empties torch's cache afterwards."""
    if ON_CUDA:
        gc.collect()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        if free < NEEDED:
            pytest.skip(f"{NEEDED / 1e9:.0f} GB of GPU memory are needed, {free / 1e9:.0f} GB are free")
    yield
    if ON_CUDA:
        gc.collect()
        torch.cuda.empty_cache()


def windows(length: int, width: int) -> list[slice]:
    """Windows at the ends, and around the elements at 2^31 and 2^32 bytes in bfloat16 and in float32."""
    middles = [length * 0, BIG // 4, BIG // 2, BIG, length]
    firsts = [max(0, min(length - width, middle - width // 2)) for middle in middles]
    return [slice(first, first + width) for first in firsts]


def normal(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).normal_()


def chunks(*tensors: Tensor) -> Iterator[list[Tensor]]:
    flat = [t.view(-1) for t in tensors]
    for at in range(0, flat[0].numel(), CHUNK):
        yield [t[at : at + CHUNK] for t in flat]


def total(p: Tensor, g: Tensor, f) -> float:
    """The sum of f over all elements, in float64."""
    return math.fsum(float(f(x.double(), y.double()).sum()) for x, y in chunks(p, g))


def test_adamw() -> None:
    torch.manual_seed(0)
    p, arguments = normal(N), dict(lr=1e-2, weight_decay=0.5)
    p.grad = normal(N)
    places = windows(N, WIDTH)
    models = [to_host(p[place]) for place in places]
    reference = onepass.AdamW(models, backend="reference", **arguments)
    opt = onepass.AdamW([p], backend=BACKEND, **arguments)
    opt.step()
    # Every element is stepped once: the first moment is (1 - b1)*g.
    share = float(np.float32(1 - 0.9))
    for m, g in chunks(opt.state[p]["exp_avg"], p.grad):
        assert torch.equal(m, g.float() * share)
    opt.step()
    for q, place in zip(models, places, strict=True):
        q.grad = to_host(p.grad[place])
    for _ in range(2):
        reference.step()
    for q, place in zip(models, places, strict=True):
        assert_same_bits(to_host(p[place]), q, f"parameter from {place.start}")
        for key in ("exp_avg", "exp_avg_sq"):
            assert_same_bits(to_host(opt.state[p][key][place]), reference.state[q][key], f"{key} from {place.start}")


@pytest.mark.parametrize("gate", ["channel", "none"])
def test_adamp_one_row(gate: str) -> None:
    """The row is cut into pieces, whose sums are reduced; c depends on them if the row is projected."""
    torch.manual_seed(1)
    p = normal(1, N)
    p.grad = p.clone()
    if gate == "channel":
        p.grad.view(-1, 4)[:, 3] *= -3  # <p, g> = 0, but not <p, sign(g)>
    lr, wd, ratio, eps = 0.5, 0.1, 0.3, 1e-8
    pg, pp, gg = (total(p, p.grad, f) for f in (torch.mul, lambda x, _: x * x, lambda _, y: y * y))
    pu = 0.1 * total(p, p.grad, lambda x, y: x * y / (y.abs() + eps))  # u = m/D, and D = |g| + eps at the first step
    places = windows(N, WIDTH)
    before = [(to_host(p[0, place]).double(), to_host(p.grad[0, place]).double()) for place in places]
    opt = onepass.AdamP([p], lr=lr, weight_decay=wd, wd_ratio=ratio, eps=eps, delta=20.0, backend=BACKEND)
    opt.step()

    verdict = opt.last_step()[p]
    assert verdict.gate == gate
    assert (verdict.p_norm, verdict.g_norm) == pytest.approx((math.sqrt(pp), math.sqrt(gg)), rel=1e-6)
    assert verdict.cosine == pytest.approx(abs(pg) / math.sqrt(pp * gg) * math.sqrt(N), rel=1e-3, abs=1e-2)
    c = pu / (math.sqrt(pp) + eps) ** 2 if gate == "channel" else 0.0
    assert gate == "none" or 0.02 < c < 0.06
    q, s = lr * wd * (ratio if gate == "channel" else 1), lr / 0.1
    for place, (x, y) in zip(places, before, strict=True):
        u = 0.1 * y / (y.abs() + eps)
        want, size = x - ((q - s * c) * x + s * u), (1 + q + s * c) * x.abs() + s * u.abs()
        assert_within(to_host(p[0, place]), want, size, UNITS, f"from {place.start}")


def test_adamp_matrix() -> None:
    """Two million rows, each with its own projection coefficient."""
    torch.manual_seed(2)
    p = normal(ROWS, COLUMNS)
    assert p.numel() > BIG
    p.grad = normal(ROWS, COLUMNS)
    places = [slice(w.start // COLUMNS, w.start // COLUMNS + 3) for w in windows(p.numel(), 3 * COLUMNS)]
    before = [(to_host(p[place]), to_host(p.grad[place])) for place in places]
    opt = onepass.AdamP([p], lr=0.5, weight_decay=0.1, wd_ratio=0.3, delta=9.0, backend=BACKEND)
    opt.step()
    assert opt.last_step()[p].gate == "channel"
    for place, (x, g) in zip(places, before, strict=True):
        zero = truth.wide(torch.zeros_like(x), float)
        state = {"step": 0.0, "exp_avg": zero, "exp_avg_sq": zero}
        want = truth.step("AdamP", opt.param_groups[0], truth.wide(x, float), truth.wide(g, float), state)
        assert want.gate == "channel"
        assert_within(to_host(p[place]), want.p, want.size, UNITS, f"rows from {place.start}")
