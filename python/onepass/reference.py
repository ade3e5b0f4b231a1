"""The specification: every rule in plain PyTorch, to be read beside the papers.

Adam, AdamW, AdamProx, AdamProxL2: "Understanding AdamW through Proximal Methods and Scale-Freeness",
TMLR 2022, arXiv 2202.00089. SGDP, AdamP: "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights", ICLR 2021, arXiv 2006.08217.

The compiled backends return the bits of these lines wherever no sum over a row is involved: each operation below
rounds once, and none is contracted into a fused multiply-add. Sums over rows are taken here in float64.

Names: p parameter, g gradient, m and v moments, b momentum buffer, u the direction of the update, s its step size,
D Adam's denominator, c the projection coefficient of a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .blocks import SCALE, decoded, encoded, has_scales
from .draws import draws, rounded
from .dtypes import compute_dtype
from .hyperparams import NO_FIXED_GATE, Hyper, has_moments
from .masters import MASTER, joined, split
from .rounding import square_root
from .sharding import Shard
from .spec import OptimizerSpec
from .verdict import GATES, Verdict


@dataclass
class Pending:
    """A projected parameter between its phases: p before the step and u, in the dtype of the arithmetic, and s; its random bits,
    if its step takes any; the sums over its rows, and the verdict once it is decided."""

    p: Tensor
    u: Tensor
    s: float
    drawn: Tensor | None
    rows: RowSums
    verdict: Verdict | None = None


def update(
    spec: OptimizerSpec,
    p: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    h: Hyper,
    first: bool,
    number: int,
    shard: Shard | None = None,
) -> Pending | None:
    """Steps the moments, and p if it is not projected; returns what the other phases need, or None if there are none.

    In place on `p` and on the tensors of `state`. first: whether the moments were made for this step (torch.optim.SGD's first
    buffer is the gradient itself). number: of the parameter among all of the optimizer. shard: of what `p` is a part, where it is
    one, and all others with it.
    """
    x, t, drawn = weight(p, state, h), 0, None
    whole = p if shard is None else torch.empty(shard.shape, dtype=p.dtype, device="meta")
    if h.precision.is_counted(spec, p.dtype):
        t = int(state["step"].add_(1))
    if h.precision.draws(spec, whole):
        drawn = draws(h.seed, t, number, p.shape, p.device, shard)
    g = h.grad_scale * grad.to(x.dtype)
    if h.l2:
        g = g + h.l2 * x
    if spec.rule == "adam":
        u, s = adam_direction(x, g, state, h, t, drawn)
    else:
        u, s = sgd_direction(spec, g, state, h, first), h.lr

    # A gate takes values to decide, which meta tensors do not have.
    if spec.projected and p.dim() > 1 and whole.numel() > 0 and not p.is_meta:
        return Pending(x, u, s, drawn, row_sums(x, g, u, h))
    d, k = affine(h, s, projected=False, c=0.0)
    write(p, state, h, apply(x, u, d, k), drawn)
    return None


def correct(
    spec: OptimizerSpec, p: Tensor, state: dict[str, Any], h: Hyper, pending: Pending, stats: list[float]
) -> None:
    """Writes p under the gate that was decided, and the momentum buffer if that is projected too."""
    assert pending.verdict is not None
    c = projection(pending, h, stats)
    d, k = affine(h, pending.s, projected=pending.verdict.gate != "none", c=c)
    stepped = apply(pending.p, pending.u, d, k)
    if h.project_momentum and not h.nesterov and isinstance(c, Tensor):
        key = spec.moments[0]
        stored(state, key, moment(state, key, pending.p.dtype) - c.to(pending.p.dtype) * pending.p)
    write(p, state, h, stepped, pending.drawn)


def weight(p: Tensor, state: dict[str, Any], h: Hyper) -> Tensor:
    """The weight of a parameter in the dtype of the arithmetic: with its remainder, where it has one (masters.py)."""
    if h.precision.has_master(p.dtype):
        return joined(p, state[MASTER])
    return p.to(compute_dtype(p.dtype))


def write(p: Tensor, state: dict[str, Any], h: Hyper, x: Tensor, drawn: Tensor | None) -> None:
    if h.precision.has_master(p.dtype):
        for to, part in zip((p, state[MASTER]), split(x), strict=True):
            to.copy_(part)
    elif h.precision.rounds_stochastically(p.dtype):
        assert drawn is not None
        p.copy_(rounded(x, drawn & 0xFFFF))
    else:
        p.copy_(x)


def moment(state: dict[str, Any], key: str, dtype: torch.dtype) -> Tensor:
    """A moment as it is stored, in the dtype of the arithmetic."""
    if has_scales(state[key]):
        return decoded(state[key], state[key + SCALE], signed=key == "exp_avg")
    return cast(Tensor, state[key].to(dtype))


def stored(state: dict[str, Any], key: str, x: Tensor, drawn: Tensor | None = None) -> Tensor:
    """Stores a moment, rounded to nearest or by random bits, and returns what is stored, in the dtype of x: u is made of that, so
    that it can be found again. drawn: of the elements, 32 bits; of them 16 round to bfloat16, and 20 to 8 bits."""
    own = state[key]
    if has_scales(own):
        code, scale = encoded(x, None if drawn is None else drawn >> 12)
        own.copy_(code)
        state[key + SCALE].copy_(scale)
    else:
        own.copy_(x if drawn is None or own.dtype == x.dtype else rounded(x, drawn >> 16))
    return moment(state, key, x.dtype)


def square_sum(gradients: list[Tensor]) -> Tensor:
    """The sum of squares over all gradients, in float64: the square of the norm that clipping looks at."""
    sums = [g.double().square().sum() for g in gradients]
    return torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.float64, device="cpu")


def adam_direction(
    p: Tensor, g: Tensor, state: dict[str, Any], h: Hyper, t: int, drawn: Tensor | None
) -> tuple[Tensor, float]:
    """m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g^2;  D = sqrt(v)/sqrt(bc2) + eps;  u = m/D;  s = lr/bc1.

    Where D is 0, and no eps to help, nothing is known of the coordinate and it is left alone: 0/0 := 0. In fewer bits than the
    arithmetic's, v is rounded stochastically: its steps are some 1/1000 of it, and to nearest it would stall.
    """
    m, v = (moment(state, key, p.dtype) for key in ("exp_avg", "exp_avg_sq"))
    m = stored(state, "exp_avg", h.beta1 * m + (1 - h.beta1) * g)
    v = stored(state, "exp_avg_sq", h.beta2 * v + (1 - h.beta2) * (g * g), drawn)
    D = square_root(v) * (1 / math.sqrt(1 - h.beta2**t)) + h.eps
    D = torch.where(D == 0, math.inf, D)
    s = h.lr / (1 - h.beta1**t)
    if h.nesterov:
        m = h.beta1 * m + (1 - h.beta1) * g
    if h.metric_decay:  # the prox in the metric lr/D, (p - s*m/D)/(1 + q/D), as p - s*u and with one division
        return (m + h.metric_decay / s * p) / (D + h.metric_decay), s
    return m / D, s


def sgd_direction(spec: OptimizerSpec, g: Tensor, state: dict[str, Any], h: Hyper, first: bool) -> Tensor:
    """b = momentum*b + (1-dampening)*g;  u = b, or g + momentum*b with nesterov.

    torch.optim.SGD (spec.lazy_buffer) has no buffer while momentum is 0, and its first b is g, undampened.
    """
    if not has_moments(spec, h):
        return g
    dampening = 0.0 if first and spec.lazy_buffer else h.dampening
    key = spec.moments[0]
    b = stored(state, key, h.momentum * moment(state, key, g.dtype) + (1 - dampening) * g)
    u: Tensor = g + h.momentum * b if h.nesterov else b
    return u


def affine(h: Hyper, s: float, projected: bool, c: Any) -> tuple[Any, float]:
    """d and k of p' = p - (d*p + k*u), to which every rule comes down.

    decoupled  p' = (1 - q)*p - s*(u - c*p):        d = q - s*c,          k = s
    proximal   p' = (p - s*(u - c*p))/(1 + q):      d = (q - s*c)/(1+q),  k = s/(1+q)

    with q the decay, times wd_ratio where projected, and c the row's projection coefficient. Writing 1-d out would
    round a decay of 1e-5 by up to 0.3% in float32.
    """
    q = h.decay * h.wd_ratio if projected else h.decay
    scale = 1 + q if h.proximal else 1.0
    return (q - s * c) / scale, s / scale


def apply(p: Tensor, u: Tensor, d: Tensor | float, k: float) -> Tensor:
    """p - (d*p + k*u); without decay p is not touched by it, so that an infinite weight stays infinite."""
    if isinstance(d, Tensor):
        d = d.to(p.dtype)
    elif d == 0:
        return p.sub(k * u)
    return p.sub(d * p + k * u)


class RowSums(NamedTuple):
    """Over the elements of each row (dim 0), float64: <p,g>, <p,p>, <g,g>, <p,u>, and |cos(p, g)|."""

    pg: Tensor
    pp: Tensor
    gg: Tensor
    pu: Tensor
    cosine: Tensor

    def stats(self) -> list[float]:
        """STATS of backend/base.py: over all rows."""
        sums = [float(x.sum()) for x in (self.pg, self.pp, self.gg, self.pu)]
        largest = float(self.cosine.max()) if len(self.pg) else 0.0
        return [*sums, largest**2, float(len(self.pg))]


def row_sums(p: Tensor, g: Tensor, u: Tensor, h: Hyper) -> RowSums:
    p64, g64, u64 = (x.double().reshape(p.size(0), math.prod(p.shape[1:])) for x in (p, g, u))
    pg, pp, gg, pu = ((a * b).sum(dim=1) for a, b in ((p64, g64), (p64, p64), (g64, g64), (p64, u64)))
    return RowSums(pg, pp, gg, pu, cosine(pg, pp, gg, h.eps))


def cosine(pg: Tensor, pp: Tensor, gg: Tensor, eps: float | Tensor) -> Tensor:
    """|cos(p, g)| = |<p,g>|/(|p|*|g|) with norms of at least eps; 0/0 := 0, and a NaN stays one."""
    norms = pp.sqrt().clamp(min=eps) * gg.sqrt().clamp(min=eps)
    return pg.abs() / torch.where(norms == 0, math.inf, norms)


def decide(stats: list[float], length: int, h: Hyper) -> Verdict:
    """The first view, channel then layer, in which every row has |cos(g, p)| < delta/sqrt(row length); or the fixed gate.

    A NaN makes the maximum NaN and the comparison false: no projection. A row of zeros has cosine 0.
    """
    _, pp, gg, _, max_cosine_squared, rows = stats
    sums = torch.tensor(stats[:3], dtype=torch.float64, device="cpu")
    whole = cosine(sums[0], sums[1], sums[2], h.eps)
    channel = math.sqrt(max_cosine_squared) * math.sqrt(length)
    layer = float(whole) * math.sqrt(rows * length)
    passed = "channel" if channel < h.delta else "layer" if layer < h.delta else "none"
    if h.fixed_gate != NO_FIXED_GATE:
        passed = GATES[h.fixed_gate]
    return Verdict(passed, channel, math.sqrt(pp), math.sqrt(gg))


def projection(pending: Pending, h: Hyper, stats: list[float]) -> Any:
    """c = <p,u>/(|p|+eps)^2 of every row of the view, shaped to multiply p (float64); 0.0 for "none"."""
    assert pending.verdict is not None
    if pending.verdict.gate == "none":
        return 0.0
    pp, pu = pending.rows.pp, pending.rows.pu
    if pending.verdict.gate == "layer":
        pp, pu = pp.new_tensor([stats[1]]), pp.new_tensor([stats[3]])
    return coefficient(pp, pu, h.eps).reshape(-1, *[1] * (pending.p.dim() - 1))


def coefficient(pp: Tensor, pu: Tensor, eps: float | Tensor) -> Tensor:
    """c = <p,u>/(|p|+eps)^2 of rows; 0/0 := 0."""
    squares = (pp.sqrt() + eps) ** 2
    return pu / torch.where(squares == 0, math.inf, squares)
