"""The launches of a step. Their number depends on the dtypes and families that are there, not on the tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import kernels, live
from .plan import Kind, Plan, Section, itemsize

FAMILIES = {"adam": 0, "sgd": 1, "plain_sgd": 2}
INTERPRETED = not isinstance(kernels.step, triton.JITFunction)
# Tensors of a program of `verdict`, and rows of each that it reads at a time. The interpreter is faster with few programs.
TENSORS, BLOCK = 16 if INTERPRETED else 1, 1024

# Contraction would round d*p + k*u once less than the reference does.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


def course_of(h: Any, is_sgd: bool, t: float, fresh: bool, negated: bool) -> list[float]:
    """COURSE's fields: the scalars of a cohort at one step, as scalars_of in csrc/rules/hyper.h. t: the step count, this
    step included. fresh: torch.optim.SGD's buffer was made for this step."""
    s = h.lr if is_sgd else h.lr / (1 - h.beta1**t)
    inv_sqrt_bc2 = 0.0 if is_sgd else 1 / math.sqrt(1 - h.beta2**t)
    return [
        *(-h.grad_scale if negated else h.grad_scale, h.l2, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2),
        *(inv_sqrt_bc2, h.eps, h.metric_decay, h.metric_decay / s if h.metric_decay else 0.0, float(h.nesterov)),
        *(h.momentum, 1 - (0.0 if fresh else h.dampening)),
        *(s, h.decay, h.wd_ratio, h.delta, float(h.proximal), float(h.project_momentum and not h.nesterov), 0.0),
    ]


@dataclass
class Tables:
    """The plan and what changes of it, on the device. measured, gated, live_tensors: the tensors that `verdict` and
    `prepare` are for. fresh: of each tensor, whether no step was counted on the device yet. no_scaling: 1, and 0."""

    plan: Plan
    count: int  # of entries
    entries: Tensor
    programs: Tensor
    measured: Tensor
    gated: Tensor
    live_tensors: Tensor
    tensors: Tensor
    courses: Tensor
    live: Tensor
    fixed: Tensor
    reports: Tensor
    verdicts: Tensor
    fresh: Tensor
    square_sum: Tensor
    no_scaling: Tensor


def constants(dtype: str, family: str, section: Section) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {
        "FAMILY": FAMILIES[family],
        "DTYPE": getattr(tl, dtype),
        "WORK": tl.float64 if dtype == "float64" else tl.float32,
        "TILE": section.tile,
        "BODIES": section.bodies,
        "VECTOR": 16 // itemsize(dtype),
    }


def square_sum(t: Tables) -> list[str]:
    """Launches the sum of squares over all gradients, into the table of that name; returns the names of the kernels."""
    for kind, section in t.plan.sections.items():
        given = constants(*kind, section)
        del given["FAMILY"], given["WORK"]
        kernels.square_sum[(section.programs,)](
            t.programs, section.first_program, t.entries, t.count, t.tensors, t.reports, **given, **OPTIONS
        )
    kernels.add_up[(1,)](t.reports, t.count, t.square_sum, BLOCK=BLOCK, **OPTIONS)
    return ["square_sum"] * len(t.plan.sections) + ["add_up"]


def launch_all(
    t: Tables,
    scaling: tuple[Tensor | None, Tensor | None, Tensor | None],
    active: set[Kind],
    gated: set[Kind],
    measured: set[Kind],
    projects: bool,
) -> list[str]:
    """Launches a step for the kinds that have a tensor to step; returns the names of the kernels. gated, measured: those that
    have one with a gate, and one that does not speculate. projects: some momentum buffer is to be projected.
    scaling: clip, grad_scale and found_inf of scaling.py's Scaling."""
    launched = []

    def per_kind(kernel: Any, kinds: Any, *tables: Tensor, **more: Any) -> None:
        for kind, section in t.plan.sections.items():
            if kind not in kinds:
                continue
            given = {**constants(*kind, section), **more}
            if kernel is kernels.measure:
                del given["FAMILY"], given["WORK"]
            kernel[(section.programs,)](
                t.programs, section.first_program, t.entries, t.count, t.tensors, t.courses, *tables, **given, **OPTIONS
            )
            launched.append(kernel.__name__)

    def judge(tensors: Tensor, measured: bool) -> None:
        if len(tensors):
            kernels.verdict[(triton.cdiv(len(tensors), TENSORS),)](
                *(tensors, len(tensors), t.count, t.tensors, t.courses, t.reports, t.verdicts),
                **{"MEASURED": measured, "TENSORS": TENSORS, "BLOCK": BLOCK, **OPTIONS},
            )
            launched.append("verdict")

    if len(t.live_tensors):
        one, zero = t.no_scaling
        clip, grad_scale, found_inf = scaling
        live.prepare[(len(t.live_tensors),)](
            *(t.live_tensors, t.tensors, t.courses, t.live, t.fixed, t.fresh),
            *(one if clip is None else clip, one if grad_scale is None else grad_scale),
            zero if found_inf is None else found_inf,
            num_warps=1,
            enable_fp_fusion=False,
        )
        launched.append("prepare")
    per_kind(kernels.measure, measured, t.reports)
    if measured:
        judge(t.measured, True)
    per_kind(kernels.step, active - gated)
    per_kind(kernels.update, gated, t.reports, t.verdicts, PROJECTS_MOMENTUM=projects)
    if gated:
        judge(t.gated, False)
    per_kind(kernels.settle, gated, t.reports, t.verdicts, PROJECTS_MOMENTUM=projects)
    return launched
