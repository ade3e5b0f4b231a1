"""Hyper-parameters and step counts that are read from the device at every step, so that a captured graph replays with
the values of the day: what hyper.py and launch.py's `course_of` do on the host, for one tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from . import rule
from .jit import device
from .kernels import COURSE_FIELDS, COURSE_OF, TENSOR_FIELDS, G, of
from .plan import FIXED, LIVE, TENSOR

STEP = tl.constexpr(TENSOR.index("step"))
NEGATED = tl.constexpr(TENSOR.index("negated"))
FRESH = tl.constexpr(TENSOR.index("fresh"))
GROUP = tl.constexpr(TENSOR.index("group"))

LIVE_FIELDS = tl.constexpr(len(LIVE))
FIXED_FIELDS = tl.constexpr(len(FIXED))


def at(name: str) -> tl.constexpr:
    return tl.constexpr(LIVE.index(name) if name in LIVE else FIXED.index(name))


LR, WEIGHT_DECAY, INITIAL_LR = at("lr"), at("weight_decay"), at("initial_lr")
LIVE_BETA1, LIVE_BETA2, LIVE_MOMENTUM = at("beta1"), at("beta2"), at("momentum")
FIXED_GRAD_SCALE, DAMPENING, FIXED_NESTEROV, FIXED_EPS = at("grad_scale"), at("dampening"), at("nesterov"), at("eps")
FIXED_DELTA, FIXED_WD_RATIO, FIXED_PROXIMAL = at("delta"), at("wd_ratio"), at("proximal")
FIXED_PROJECT_MOMENTUM, IS_SGD, INTO_L2, INTO_METRIC = (
    at("project_momentum"),
    at("is_sgd"),
    at("into_l2"),
    at("into_metric"),
)
DECOUPLE_LR, OVER_ONE_MINUS_MOMENTUM = at("decouple_lr"), at("over_one_minus_momentum")

# A float32 count goes up to 2^24.
COUNT_BITS = tl.constexpr(25)


@device
def read_live(live, name):
    """A hyper-parameter from where it lives, a float or a double."""
    address = tl.load(live + 2 * name)
    wide = tl.load(live + 2 * name + 1) != 0
    narrow = tl.load(address.to(tl.pointer_type(tl.float32)), mask=wide == 0, other=0.0)
    double = tl.load(address.to(tl.pointer_type(tl.float64)), mask=wide, other=0.0)
    return tl.where(wide, double, narrow.to(tl.float64))


@device
def power(base, exponent):
    """base^exponent for a whole exponent, by squaring: the device has no pow that rounds alike everywhere."""
    result = tl.where(exponent >= 0, 1.0, 1.0).to(tl.float64)
    for _ in tl.static_range(COUNT_BITS):
        result = tl.where(exponent % 2 == 1, result * base, result)
        base = base * base
        exponent = exponent // 2
    return result


@device
def put(course, name, x):
    tl.store(course + name, x)


@triton.jit
def prepare(live_tensors, tensors, courses, live, fixed, fresh, clip, grad_scale, found_inf):
    """Counts the step of one tensor and works out its scalars, or has its step skipped. clip, grad_scale, found_inf: the
    fields of scaling.py's Scaling."""
    index = tl.load(live_tensors + tl.program_id(0))
    tensor = tensors + index * TENSOR_FIELDS
    skipped = tl.load(found_inf).to(tl.float64) != 0
    put(courses + of(tensor, COURSE_OF) * COURSE_FIELDS, rule.SKIPPED, skipped.to(tl.float64))
    if (of(tensor, G) != 0) & (skipped == 0):
        group = of(tensor, GROUP)
        live = live + group * 2 * LIVE_FIELDS
        fixed = fixed + group * FIXED_FIELDS
        course = courses + of(tensor, COURSE_OF) * COURSE_FIELDS

        address = of(tensor, STEP)
        count = address.to(tl.pointer_type(tl.float32))
        t = tl.load(count, mask=address != 0, other=0.0) + 1
        tl.store(count, t, mask=address != 0)
        t = t.to(tl.int64)

        lr = read_live(live, LR)
        wd = read_live(live, WEIGHT_DECAY)
        beta1 = read_live(live, LIVE_BETA1)
        beta2 = read_live(live, LIVE_BETA2)
        momentum = read_live(live, LIVE_MOMENTUM)
        decay_lr = tl.where(tl.load(fixed + DECOUPLE_LR) != 0, lr / read_live(live, INITIAL_LR), lr)
        into_l2 = tl.load(fixed + INTO_L2) != 0
        into_metric = tl.load(fixed + INTO_METRIC) != 0
        over = (tl.load(fixed + OVER_ONE_MINUS_MOMENTUM) != 0) & (wd != 0)
        metric_decay = tl.where(into_metric, decay_lr * wd, 0.0)
        decay = tl.where(into_l2 | into_metric, 0.0, decay_lr * wd) / tl.where(over, 1 - momentum, 1.0)
        s = tl.where(tl.load(fixed + IS_SGD) != 0, lr, lr / (1 - power(beta1, t)))
        sign = tl.where(of(tensor, NEGATED) != 0, -1.0, 1.0)
        first = (of(tensor, FRESH) != 0) & (tl.load(fresh + index) != 0)
        tl.store(fresh + index, 0.0)
        dampening = tl.where(first, 0.0, tl.load(fixed + DAMPENING))
        factor = tl.load(clip).to(tl.float64) / tl.load(grad_scale).to(tl.float64)

        put(course, rule.GRAD_SCALE, sign * tl.load(fixed + FIXED_GRAD_SCALE) * factor)
        put(course, rule.L2, tl.where(into_l2, wd, 0.0))
        put(course, rule.BETA1, beta1)
        put(course, rule.ONE_MINUS_BETA1, 1 - beta1)
        put(course, rule.BETA2, beta2)
        put(course, rule.ONE_MINUS_BETA2, 1 - beta2)
        put(course, rule.INV_SQRT_BC2, 1 / tl.sqrt(1 - power(beta2, t)))
        put(course, rule.EPS, tl.load(fixed + FIXED_EPS))
        put(course, rule.METRIC_DECAY, metric_decay)
        put(course, rule.METRIC_DECAY_OVER_S, tl.where(metric_decay == 0, 0.0, metric_decay / s))
        put(course, rule.NESTEROV, tl.load(fixed + FIXED_NESTEROV))
        put(course, rule.MOMENTUM, momentum)
        put(course, rule.ONE_MINUS_DAMPENING, 1 - dampening)
        put(course, rule.S, s)
        put(course, rule.DECAY, decay)
        put(course, rule.WD_RATIO, tl.load(fixed + FIXED_WD_RATIO))
        put(course, rule.DELTA, tl.load(fixed + FIXED_DELTA))
        put(course, rule.PROXIMAL, tl.load(fixed + FIXED_PROXIMAL))
        put(course, rule.PROJECT_MOMENTUM, tl.load(fixed + FIXED_PROJECT_MOMENTUM))
