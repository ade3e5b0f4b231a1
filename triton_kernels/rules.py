"""The rules in Triton: what reference.py and csrc/rules/ say, under the same names.

`scalars` points to the scalars of a bucket (plan.py's SCALARS), float64; a rule narrows each to the dtype of p, once.
Every operation rounds once: the kernels are launched without contraction, and division and square root are IEEE's. What
belongs to a row is float64.

Sources: AdamProx, arXiv 2202.00089; AdamP and SGDP, arXiv 2006.08217.
"""

from __future__ import annotations

import triton.language as tl

from .jit import device
from .plan import SCALARS

GRAD_SCALE = tl.constexpr(SCALARS.index("grad_scale"))
L2 = tl.constexpr(SCALARS.index("l2"))
BETA1 = tl.constexpr(SCALARS.index("beta1"))
ONE_MINUS_BETA1 = tl.constexpr(SCALARS.index("one_minus_beta1"))
BETA2 = tl.constexpr(SCALARS.index("beta2"))
ONE_MINUS_BETA2 = tl.constexpr(SCALARS.index("one_minus_beta2"))
INV_SQRT_BC2 = tl.constexpr(SCALARS.index("inv_sqrt_bc2"))
EPS = tl.constexpr(SCALARS.index("eps"))
METRIC_DECAY = tl.constexpr(SCALARS.index("metric_decay"))
METRIC_DECAY_OVER_S = tl.constexpr(SCALARS.index("metric_decay_over_s"))
NESTEROV = tl.constexpr(SCALARS.index("nesterov"))
MOMENTUM = tl.constexpr(SCALARS.index("momentum"))
ONE_MINUS_DAMPENING = tl.constexpr(SCALARS.index("one_minus_dampening"))
S = tl.constexpr(SCALARS.index("s"))
DECAY = tl.constexpr(SCALARS.index("decay"))
WD_RATIO = tl.constexpr(SCALARS.index("wd_ratio"))
DELTA = tl.constexpr(SCALARS.index("delta"))
PROXIMAL = tl.constexpr(SCALARS.index("proximal"))
PROJECT_MOMENTUM = tl.constexpr(SCALARS.index("project_momentum"))
FIXED_GATE = tl.constexpr(SCALARS.index("fixed_gate"))
DRAW_A = tl.constexpr(SCALARS.index("draw_a"))
DRAW_B = tl.constexpr(SCALARS.index("draw_b"))
SKIPPED = tl.constexpr(SCALARS.index("skipped"))

# Rules and gates.
ADAM_RULE = tl.constexpr(0)
MOMENTUM_RULE = tl.constexpr(1)
SGD_RULE = tl.constexpr(2)
NONE = tl.constexpr(0)
CHANNEL = tl.constexpr(1)
LAYER = tl.constexpr(2)

INFINITY = tl.constexpr(float("inf"))
NAN = tl.constexpr(float("nan"))
EIGHT_UNITS = tl.constexpr(2.0**-50)  # of float64

# ------------------------------------------------------------------ one element


@device
def number(scalars, name, p):
    """One scalar, in the dtype of p."""
    return tl.load(scalars + name).to(p.dtype)


@device
def divide(a, b):
    """a/b, rounded to nearest; `/` is not in float32."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@device
def root(a):
    """The square root, rounded to nearest."""
    if a.dtype == tl.float32:
        return tl.sqrt_rn(a)
    else:
        return tl.sqrt(a)


@device
def gradient(p, g, scalars):
    """g = grad_scale*g (+ l2*p)"""
    g = number(scalars, GRAD_SCALE, p) * g
    l2 = number(scalars, L2, p)
    if l2 != 0:
        g = g + l2 * p
    return g


@device
def advance(g, m, v, scalars, RULE: tl.constexpr):
    """m = b1*m + (1-b1)*g;  v = b2*v + (1-b2)*g^2.  With momentum, m is b = momentum*b + (1-dampening)*g."""
    if RULE == ADAM_RULE:
        m = number(scalars, BETA1, g) * m + number(scalars, ONE_MINUS_BETA1, g) * g
        v = number(scalars, BETA2, g) * v + number(scalars, ONE_MINUS_BETA2, g) * (g * g)
    if RULE == MOMENTUM_RULE:
        m = number(scalars, MOMENTUM, g) * m + number(scalars, ONE_MINUS_DAMPENING, g) * g
    return m, v


@device
def reads_gradient(scalars):
    """Whether `direction` needs the gradient beside the moments."""
    return tl.load(scalars + NESTEROV) != 0


@device
def direction(p, g, m, v, scalars, RULE: tl.constexpr):
    """u = m/D with D = sqrt(v)/sqrt(bc2) + eps; nesterov: (b1*m + (1-b1)*g)/D.  With momentum, u = b or g + momentum*b.

    AdamProxL2: u = (m + (q/s)*p)/(D + q) with q = wd*lr. Where D is 0, and no eps to help, nothing is known of the coordinate: 0/0 := 0.
    """
    nesterov = tl.load(scalars + NESTEROV) != 0
    if RULE == ADAM_RULE:
        D = root(v) * number(scalars, INV_SQRT_BC2, p) + number(scalars, EPS, p)
        D = tl.where(D == 0, INFINITY, D)
        if nesterov:
            m = number(scalars, BETA1, p) * m + number(scalars, ONE_MINUS_BETA1, p) * g
        if tl.load(scalars + METRIC_DECAY) != 0:
            m = m + number(scalars, METRIC_DECAY_OVER_S, p) * p
            D = D + number(scalars, METRIC_DECAY, p)
        u = divide(m, D)
    elif RULE == MOMENTUM_RULE:
        u = m
        if nesterov:
            u = g + number(scalars, MOMENTUM, p) * m
    else:
        u = g
    return u


@device
def apply(p, u, d, k):
    """p' = p - (d*p + k*u); without decay p is not touched by it, so that an infinite weight stays infinite."""
    ku = k * u
    return tl.where(d == 0, p - ku, p - (d * p + ku))


# ------------------------------------------------------------------ one row


@device
def or_infinity(x):
    """0/0 := 0, and a NaN above stays one."""
    return tl.where(x == 0, INFINITY, x)


@device
def clamp_below(x, low):
    """max(x, low) that keeps a NaN in x."""
    return tl.where(x < low, low, x)


@device
def cosine_squared(pg, pp, gg, scalars):
    """cos(p, g)^2; a row of zeros has cosine 0, a row with a NaN has NaN."""
    eps = tl.load(scalars + EPS)
    return pg * pg / or_infinity(clamp_below(pp, eps * eps) * clamp_below(gg, eps * eps))


@device
def cosine_of(squared, length):
    """The cosine from its square, for rows of `length` elements. That of a single element is 1 (less only where eps is the
    norm), but its square comes from products that were rounded, and is up to 7 units away."""
    return tl.where((length == 1) & (tl.abs(squared - 1) <= EIGHT_UNITS), 1.0, tl.sqrt(squared))


@device
def coefficient(pp, pu, scalars):
    """c = <p,u>/(|p|+eps)^2"""
    norm = tl.sqrt(pp) + tl.load(scalars + EPS)
    return pu / or_infinity(norm * norm)


@device
def passes(max_cosine, row_length, scalars):
    """cos < delta/sqrt(length); false for NaN."""
    return max_cosine < tl.load(scalars + DELTA) / tl.sqrt(row_length)


@device
def affine(gate, c, scalars):
    """d and k of p' = p - (d*p + k*u), to which every rule comes down.

    decoupled  p' = (1 - q)*p - s*(u - c*p):        d = q - s*c          k = s
    proximal   p' = (p - s*(u - c*p))/(1 + q):      d = (q - s*c)/(1+q)  k = s/(1+q)

    q is the decay, times wd_ratio where projected.
    """
    s = tl.load(scalars + S)
    decay = tl.load(scalars + DECAY)
    q = tl.where(gate == NONE, decay, decay * tl.load(scalars + WD_RATIO))
    d = q - tl.where(gate == NONE, 0.0, s * c)
    scale = tl.where(tl.load(scalars + PROXIMAL) != 0, 1 + q, 1.0)
    return d / scale, s / scale


@device
def max_or_nan(a, b):
    """The larger of two, or NaN if either is."""
    return tl.where((a > b) | (a != a), a, b)


@device
def largest_or_nan(x):
    """max_or_nan over each row of x, none of it negative: the bits of such numbers are ordered as they are, NaN on top."""
    bits = tl.where(x == x, x, NAN).to(tl.int64, bitcast=True)
    return tl.max(bits, axis=1).to(tl.float64, bitcast=True)


@device
def recoverable(d, sc):
    """Whether p can be recovered from p' = p - (d*p + k*u) to full accuracy: p' keeps half of p at least, and the
    projection s*c does not exceed p itself. False for NaN and infinity."""
    return (tl.abs(1 - d) >= 0.5) & (tl.abs(sc) <= 1)


@device
def correction(d0, k0, d1, k1):
    """The affine step that leads from p' under (d0, k0) to that under (d1, k1): p'' = r*p' + (r*k0 - k1)*u with
    r = (1-d1)/(1-d0)."""
    r = (1 - d1) / (1 - d0)
    return (d1 - d0) / (1 - d0), k1 - r * k0


@device
def fixed_or(gate, scalars):
    """The gate that the group sets, or else `gate`."""
    fixed = tl.load(scalars + FIXED_GATE).to(tl.int32)
    return tl.where(fixed >= 0, fixed, gate)


@device
def predicted(counter, scalars):
    """The gate that a tensor is expected to take: the fixed one, or else never `layer`, which it passes by chance now and then."""
    return fixed_or(tl.where(counter >= 2, CHANNEL, NONE), scalars)


@device
def next_counter(counter, gate):
    """The predictor: from 0 to 3, up at every verdict of `channel`, down at any other."""
    up = tl.where(counter < 3, counter + 1, 3)
    down = tl.where(counter > 0, counter - 1, 0)
    return tl.where(gate == CHANNEL, up, down)
