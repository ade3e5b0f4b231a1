"""The launches of a step. Their number depends on the dtypes, rules and row lengths of the tensors, not on how many there are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from . import device_scalars, gate, kernels
from .plan import EACH, KernelKey, Launch, Plan

RULES = {"adam": 0, "momentum": 1, "sgd": 2}
INTERPRETED = not isinstance(kernels.step, triton.JITFunction)
# Tensors of a program of `decide`, and the rows of each that it reads at once. The interpreter is faster with few programs.
TENSORS, BLOCK = 16 if INTERPRETED else 1, 1024

# Contraction would round d*p + k*u once less than the reference does.
OPTIONS = {"enable_fp_fusion": False}
# Of a thread with 16 elements, so that two programs of a row of 4,096 are on a multiprocessor; only NVIDIA's compiler takes it.
MOST_REGISTERS = 128
# The most programs of `correct`, which take tiles in turn: nearly always they read that nothing is to be corrected, and that
# takes as long as to begin a program.
CORRECTING = 1024


def scalars_of(h: Any, rule: str, t: float, first: bool, negated: bool, draw_key: tuple[int, int]) -> list[float]:
    """The fields of SCALARS: the scalars of a bucket at one step, as scalars_of in csrc/rules/hyper.h. t: the step count, this
    step included. first: torch.optim.SGD's momentum buffer was made for this step. draw_key: of the step's random bits."""
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
        ),
        *(*map(float, draw_key), 0.0),
    ]


@dataclass
class DeviceTables:
    """The plan on the device. unpredicted, gated: the tensors whose gate `decide` decides before and after the update.
    device_counted: those whose steps the device counts. first_steps: of each tensor, whether no step was counted on the
    device yet. corrects: whether some tensor is to be corrected. split_pieces, is_piece: of every split row, its pieces in row_table, filled
    up by a spare row, and which are no filling. no_scaling: the numbers 1 and 0."""

    plan: Plan
    count: int  # of rows in row_table
    lanes: int  # of a warp
    nvidia: bool
    row_table: Tensor
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
    corrects: Tensor
    first_steps: Tensor
    square_sum: Tensor
    split_pieces: Tensor
    is_piece: Tensor
    no_scaling: Tensor


def device() -> tuple[int, bool]:
    """Lanes of a warp of the current device, and whether it is NVIDIA's."""
    if INTERPRETED:
        return 32, True
    target = triton.runtime.driver.active.get_current_target()
    return int(target.warp_size), target.backend == "cuda"


def constants(launch: Launch, names: list[str]) -> dict[str, Any]:
    """What a kernel with these parameters is compiled for."""
    param = launch.key.param
    every = {
        "RULE": RULES[launch.key.rule],
        "PARAM": getattr(tl, param),
        "GRADIENT": getattr(tl, launch.key.gradient),
        "MOMENT": getattr(tl, launch.key.moment),
        "MASTER": launch.key.master,
        "STOCHASTIC": launch.key.stochastic,
        "DRAWS": launch.key.draws,
        "WORK": tl.float64 if param == "float64" else tl.float32,
        "WIDTH": launch.config.width,
        "ROWS": launch.rows,
        "ALIGNED": launch.key.vector if launch.config.vector else 0,
    }
    return {name: x for name, x in every.items() if name in names}


def run(kernel: Any, t: DeviceTables, launches: list[Launch], *tables: Tensor, **more: Any) -> list[str]:
    """Launches a kernel for some launches of the plan; returns its name as often."""
    for launch in launches:
        programs = launch.programs
        own = {"programs": programs} if "programs" in kernel.arg_names else {}
        limit = {"maxnreg": MOST_REGISTERS} if launch.each(t.nvidia) > EACH else {}
        kernel[(min(programs, CORRECTING) if own else programs,)](
            *(t.row_table, launch.first, t.count, t.tensors, *tables),
            **constants(launch, kernel.arg_names),
            **own,
            **more,
            num_warps=launch.warps(t.lanes, t.nvidia),
            **limit,
            **OPTIONS,
        )
    return [kernel.__name__] * len(launches)


def square_sum(t: DeviceTables, total: bool = True) -> list[str]:
    """Launches the sum of squares over all gradients, into the table of that name, or without `total` those of the rows; returns the
    names of the kernels."""
    launched = run(kernels.square_sum, t, t.plan.launches, t.row_stats)
    if not total:
        return launched
    kernels.add_up[(1,)](t.row_stats, t.count, t.square_sum, BLOCK=BLOCK, num_warps=8, **OPTIONS)
    return [*launched, "add_up"]


@dataclass(frozen=True)
class Step:
    """The launches of one step, phase by phase. `launched`: the names of the kernels so far.

    plain, gated: the kernel keys of the tensors that are stepped, without a gate and with one. unpredicted: those of projected
    tensors that do not speculate. projects: whether some momentum buffer is projected. scaling: clip, grad_scale and
    found_inf of scaling.py's Scaling. exchanges: whether `stats` are exchanged between update and decide.
    """

    tables: DeviceTables
    scaling: tuple[Tensor | None, Tensor | None, Tensor | None]
    plain: set[KernelKey]
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
            self._run(kernels.gate_stats, self._launches(True, self.unpredicted), self.tables.row_stats)
            self._decide(self.tables.unpredicted, before_update=True)

    def update(self) -> None:
        t = self.tables
        self._run(kernels.step, self._launches(False, self.plain))
        self._run(
            *(kernels.update, self._launches(True, self.gated)),
            *(t.row_stats, t.verdicts, t.corrects),
            PROJECTS_MOMENTUM=self.projects,
        )
        if self.exchanges:
            self._decide(t.gated, decides=False)

    def decide(self) -> None:
        if self.gated or self.exchanges:  # where this device has no rows, others have
            self._decide(self.tables.gated, sums=not self.exchanges)

    def correct(self) -> None:
        t = self.tables
        self._run(
            *(kernels.correct, self._launches(True, self.gated)),
            *(t.row_stats, t.verdicts, t.corrects),
            PROJECTS_MOMENTUM=self.projects,
        )

    def _launches(self, projected: bool, keys: set[KernelKey]) -> list[Launch]:
        return [x for x in self.tables.plan.launches if x.projected == projected and x.key in keys]

    def _run(self, kernel: Any, launches: list[Launch], *tables: Tensor, **more: Any) -> None:
        t = self.tables
        self.launched.extend(run(kernel, t, launches, t.scalars_table, *tables, **more))

    def _decide(self, tensors: Tensor, before_update: bool = False, sums: bool = True, decides: bool = True) -> None:
        t = self.tables
        if not len(tensors):
            return
        gate.decide[(triton.cdiv(len(tensors), TENSORS),)](
            *(tensors, len(tensors), t.count, t.tensors, t.scalars_table, t.row_stats, t.stats, t.verdicts, t.corrects),
            BEFORE_UPDATE=before_update,
            SUMS=sums,
            DECIDES=decides,
            TENSORS=TENSORS,
            BLOCK=BLOCK,
            num_warps=16,
            **OPTIONS,
        )
        self.launched.append("decide")
