"""The launches of a step. Their number depends on the dtypes and rules of the tensors, not on how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import device_scalars, gate, kernels
from .plan import KernelKey, Plan, ProgramRange, itemsize

RULES = {"adam": 0, "momentum": 1, "sgd": 2}
INTERPRETED = not isinstance(kernels.step, triton.JITFunction)
# Tensors of a program of `decide`, and the rows of each that it reads at once. The interpreter is faster with few programs.
TENSORS, BLOCK = 16 if INTERPRETED else 1, 1024

# Contraction would round d*p + k*u once less than the reference does.
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


def scalars_of(h: Any, rule: str, t: float, first: bool, negated: bool) -> list[float]:
    """The fields of SCALARS: the scalars of a bucket at one step, as scalars_of in csrc/rules/hyper.h. t: the step count, this
    step included. first: torch.optim.SGD's momentum buffer was made for this step."""
    s = h.lr / (1 - h.beta1**t) if rule == "adam" else h.lr
    inv_sqrt_bc2 = 1 / math.sqrt(1 - h.beta2**t) if rule == "adam" else 0.0
    return [
        *(-h.grad_scale if negated else h.grad_scale, h.l2, h.beta1, 1 - h.beta1, h.beta2, 1 - h.beta2),
        *(inv_sqrt_bc2, h.eps, h.metric_decay, h.metric_decay / s if h.metric_decay else 0.0, float(h.nesterov)),
        *(h.momentum, 1 - (0.0 if first else h.dampening)),
        *(
            s,
            h.decay,
            h.wd_ratio,
            h.delta,
            float(h.proximal),
            float(h.project_momentum and not h.nesterov),
            h.fixed_gate,
            0.0,
        ),
    ]


@dataclass
class DeviceTables:
    """The plan on the device. unpredicted, gated: the tensors whose gate `decide` decides before and after the update.
    device_counted: those whose steps the device counts. first_steps: of each tensor, whether no step was counted on the
    device yet. no_scaling: the numbers 1 and 0."""

    plan: Plan
    count: int  # of rows in row_table
    row_table: Tensor
    programs: Tensor
    unpredicted: Tensor
    gated: Tensor
    device_counted: Tensor
    tensors: Tensor
    scalars_table: Tensor
    device_hypers: Tensor
    fixed_hypers: Tensor
    row_stats: Tensor
    stats: Tensor
    verdicts: Tensor
    first_steps: Tensor
    square_sum: Tensor
    no_scaling: Tensor


def constants(key: KernelKey, programs: ProgramRange) -> dict[str, Any]:
    """What a kernel is compiled for."""
    return {
        "RULE": RULES[key.rule],
        "PARAM": getattr(tl, key.param),
        "MOMENT": getattr(tl, key.moment),
        "WORK": tl.float64 if key.param == "float64" else tl.float32,
        "TILE": programs.tile,
        "CONFIGS": programs.configs,
        "VECTOR": 16 // itemsize(key.param),
    }


def square_sum(t: DeviceTables) -> list[str]:
    """Launches the sum of squares over all gradients, into the table of that name; returns the names of the kernels."""
    for key, programs in t.plan.ranges.items():
        given = constants(key, programs)
        del given["RULE"], given["MOMENT"], given["WORK"]
        kernels.square_sum[(programs.count,)](
            t.programs, programs.first, t.row_table, t.count, t.tensors, t.row_stats, **given, **OPTIONS
        )
    kernels.add_up[(1,)](t.row_stats, t.count, t.square_sum, BLOCK=BLOCK, **OPTIONS)
    return ["square_sum"] * len(t.plan.ranges) + ["add_up"]


@dataclass(frozen=True)
class Step:
    """The launches of one step, phase by phase. `launched`: the names of the kernels so far.

    active: the kernel keys of the tensors that are stepped. gated, unpredicted: those of the projected tensors, and of the
    projected ones that do not speculate. projects: whether some momentum buffer is projected. scaling: clip, grad_scale and
    found_inf of scaling.py's Scaling. exchanges: whether `stats` are exchanged between update and decide.
    """

    tables: DeviceTables
    scaling: tuple[Tensor | None, Tensor | None, Tensor | None]
    active: set[KernelKey]
    gated: set[KernelKey]
    unpredicted: set[KernelKey]
    projects: bool
    exchanges: bool
    launched: list[str] = field(default_factory=list)

    def device_scalars(self) -> None:
        t = self.tables
        if not len(t.device_counted):
            return
        one, zero = t.no_scaling
        clip, grad_scale, found_inf = self.scaling
        device_scalars.device_scalars[(len(t.device_counted),)](
            *(t.device_counted, t.tensors, t.scalars_table, t.device_hypers, t.fixed_hypers, t.first_steps),
            *(one if clip is None else clip, one if grad_scale is None else grad_scale),
            zero if found_inf is None else found_inf,
            num_warps=1,
            enable_fp_fusion=False,
        )
        self.launched.append("device_scalars")

    def gate_stats(self) -> None:
        if self.unpredicted:
            self._per_key(kernels.gate_stats, self.unpredicted, self.tables.row_stats)
            self._decide(self.tables.unpredicted, before_update=True)

    def update(self) -> None:
        t = self.tables
        self._per_key(kernels.step, self.active - self.gated)
        self._per_key(kernels.update, self.gated, t.row_stats, t.verdicts, PROJECTS_MOMENTUM=self.projects)
        if self.gated and self.exchanges:
            self._decide(t.gated, decides=False)

    def decide(self) -> None:
        if self.gated:
            self._decide(self.tables.gated, sums=not self.exchanges)

    def correct(self) -> None:
        t = self.tables
        self._per_key(kernels.correct, self.gated, t.row_stats, t.verdicts, PROJECTS_MOMENTUM=self.projects)

    def _per_key(self, kernel: Any, keys: set[KernelKey], *tables: Tensor, **more: Any) -> None:
        t = self.tables
        for key, programs in t.plan.ranges.items():
            if key not in keys:
                continue
            given = {**constants(key, programs), **more}
            if kernel is kernels.gate_stats:
                del given["RULE"], given["MOMENT"], given["WORK"]
            kernel[(programs.count,)](
                t.programs,
                programs.first,
                t.row_table,
                t.count,
                t.tensors,
                t.scalars_table,
                *tables,
                **given,
                **OPTIONS,
            )
            self.launched.append(kernel.__name__)

    def _decide(self, tensors: Tensor, before_update: bool = False, sums: bool = True, decides: bool = True) -> None:
        t = self.tables
        if not len(tensors):
            return
        gate.decide[(triton.cdiv(len(tensors), TENSORS),)](
            *(tensors, len(tensors), t.count, t.tensors, t.scalars_table, t.row_stats, t.stats, t.verdicts),
            BEFORE_UPDATE=before_update,
            SUMS=sums,
            DECIDES=decides,
            TENSORS=TENSORS,
            BLOCK=BLOCK,
            **OPTIONS,
        )
        self.launched.append("decide")
