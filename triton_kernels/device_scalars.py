"""Scalars of the groups whose steps the device counts. Hyper-parameters and step counts are read from device memory at every
step, so that replaying a captured CUDA graph uses the current values. The same as hyper_of in hyperparams.py and scalars_of in
launch.py on the host, for one tensor."""

from __future__ import annotations

import triton
import triton.language as tl

from . import rules
from .draws import absorbed, whole
from .jit import device
from .memory import BUCKET, SCALARS_FIELDS, TENSOR_FIELDS, G, of
from .plan import DEVICE_HYPER, FIXED_HYPER, TENSOR

STEP = tl.constexpr(TENSOR.index("step"))
NEGATED = tl.constexpr(TENSOR.index("negated"))
FIRST_STEP = tl.constexpr(TENSOR.index("first_step"))
GROUP = tl.constexpr(TENSOR.index("group"))

DEVICE_HYPER_FIELDS = tl.constexpr(len(DEVICE_HYPER))
FIXED_HYPER_FIELDS = tl.constexpr(len(FIXED_HYPER))


def at(name: str) -> tl.constexpr:
    return tl.constexpr(DEVICE_HYPER.index(name) if name in DEVICE_HYPER else FIXED_HYPER.index(name))


LR, WEIGHT_DECAY, INITIAL_LR = at("lr"), at("weight_decay"), at("initial_lr")
GROUP_BETA1, GROUP_BETA2, GROUP_MOMENTUM = at("beta1"), at("beta2"), at("momentum")
FIXED_GRAD_SCALE, DAMPENING, FIXED_NESTEROV, FIXED_EPS = at("grad_scale"), at("dampening"), at("nesterov"), at("eps")
FIXED_DELTA, FIXED_WD_RATIO, FIXED_PROXIMAL = at("delta"), at("wd_ratio"), at("proximal")
FIXED_PROJECT_MOMENTUM, HAS_MOMENTUM, INTO_L2, INTO_METRIC = (
    at("project_momentum"),
    at("has_momentum"),
    at("into_l2"),
    at("into_metric"),
)
DECOUPLE_LR, OVER_ONE_MINUS_MOMENTUM = at("decouple_lr"), at("over_one_minus_momentum")
FIXED_GATE = at("fixed_gate")
SEED_LOW, SEED_HIGH = at("seed_low"), at("seed_high")
START_A, START_B = tl.constexpr(0x243F6A88), tl.constexpr(0x85A308D3)

# A float32 count goes up to 2^24.
COUNT_BITS = tl.constexpr(25)


@device
def read_number(device_hypers, name):
    """A hyper-parameter from its address: a float32 or a float64."""
    address = tl.load(device_hypers + 2 * name)
    wide = tl.load(device_hypers + 2 * name + 1) != 0
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
def put(scalars, name, x):
    tl.store(scalars + name, x)


@triton.jit
def device_scalars(
    device_counted, tensors, scalars_table, device_hypers, fixed_hypers, first_steps, clip, grad_scale, found_inf
):
    """Counts the step of one tensor and computes its scalars, or marks its step as skipped. clip, grad_scale, found_inf: the
    fields of scaling.py's Scaling."""
    index = tl.load(device_counted + tl.program_id(0))
    tensor = tensors + index * TENSOR_FIELDS
    skipped = tl.load(found_inf).to(tl.float64) != 0
    put(scalars_table + of(tensor, BUCKET) * SCALARS_FIELDS, rules.SKIPPED, skipped.to(tl.float64))
    if (of(tensor, G) != 0) & (skipped == 0):
        group = of(tensor, GROUP)
        device_hypers = device_hypers + group * 2 * DEVICE_HYPER_FIELDS
        fixed_hypers = fixed_hypers + group * FIXED_HYPER_FIELDS
        scalars = scalars_table + of(tensor, BUCKET) * SCALARS_FIELDS

        address = of(tensor, STEP)
        count = address.to(tl.pointer_type(tl.float32))
        t = tl.load(count, mask=address != 0, other=0.0) + 1
        tl.store(count, t, mask=address != 0)
        t = t.to(tl.int64)

        lr = read_number(device_hypers, LR)
        wd = read_number(device_hypers, WEIGHT_DECAY)
        beta1 = read_number(device_hypers, GROUP_BETA1)
        beta2 = read_number(device_hypers, GROUP_BETA2)
        momentum = read_number(device_hypers, GROUP_MOMENTUM)
        decay_lr = tl.where(tl.load(fixed_hypers + DECOUPLE_LR) != 0, lr / read_number(device_hypers, INITIAL_LR), lr)
        into_l2 = tl.load(fixed_hypers + INTO_L2) != 0
        into_metric = tl.load(fixed_hypers + INTO_METRIC) != 0
        over = (tl.load(fixed_hypers + OVER_ONE_MINUS_MOMENTUM) != 0) & (wd != 0)
        metric_decay = tl.where(into_metric, decay_lr * wd, 0.0)
        decay = tl.where(into_l2 | into_metric, 0.0, decay_lr * wd) / tl.where(over, 1 - momentum, 1.0)
        s = tl.where(tl.load(fixed_hypers + HAS_MOMENTUM) != 0, lr, lr / (1 - power(beta1, t)))
        sign = tl.where(of(tensor, NEGATED) != 0, -1.0, 1.0)
        first = (of(tensor, FIRST_STEP) != 0) & (tl.load(first_steps + index) != 0)
        tl.store(first_steps + index, 0.0)
        dampening = tl.where(first, 0.0, tl.load(fixed_hypers + DAMPENING))
        factor = tl.load(clip).to(tl.float64) / tl.load(grad_scale).to(tl.float64)

        put(scalars, rules.GRAD_SCALE, sign * tl.load(fixed_hypers + FIXED_GRAD_SCALE) * factor)
        put(scalars, rules.L2, tl.where(into_l2, wd, 0.0))
        put(scalars, rules.BETA1, beta1)
        put(scalars, rules.ONE_MINUS_BETA1, 1 - beta1)
        put(scalars, rules.BETA2, beta2)
        put(scalars, rules.ONE_MINUS_BETA2, 1 - beta2)
        put(scalars, rules.INV_SQRT_BC2, 1 / tl.sqrt(1 - power(beta2, t)))
        put(scalars, rules.EPS, tl.load(fixed_hypers + FIXED_EPS))
        put(scalars, rules.METRIC_DECAY, metric_decay)
        put(scalars, rules.METRIC_DECAY_OVER_S, tl.where(metric_decay == 0, 0.0, metric_decay / s))
        put(scalars, rules.NESTEROV, tl.load(fixed_hypers + FIXED_NESTEROV))
        put(scalars, rules.MOMENTUM, momentum)
        put(scalars, rules.ONE_MINUS_DAMPENING, 1 - dampening)
        put(scalars, rules.S, s)
        put(scalars, rules.DECAY, decay)
        put(scalars, rules.WD_RATIO, tl.load(fixed_hypers + FIXED_WD_RATIO))
        put(scalars, rules.DELTA, tl.load(fixed_hypers + FIXED_DELTA))
        put(scalars, rules.PROXIMAL, tl.load(fixed_hypers + FIXED_PROXIMAL))
        put(scalars, rules.PROJECT_MOMENTUM, tl.load(fixed_hypers + FIXED_PROJECT_MOMENTUM))
        put(scalars, rules.FIXED_GATE, tl.load(fixed_hypers + FIXED_GATE))

        a, b = absorbed(START_A, START_B, whole(tl.load(fixed_hypers + SEED_LOW)))
        a, b = absorbed(a, b, whole(tl.load(fixed_hypers + SEED_HIGH)))
        a, b = absorbed(a, b, t.to(tl.uint32))
        put(scalars, rules.DRAW_A, a.to(tl.float64))
        put(scalars, rules.DRAW_B, b.to(tl.float64))
