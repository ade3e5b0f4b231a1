"""What is timed: a record per case, each with its tensors, its contenders and the ratios to reach.

"AdamP as timm" and "SGDP as timm" have the arguments that timm's factory passes, and "timm AdamP" and "timm SGDP" are
timm's classes with them; they are left out where timm is not installed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import adamp
import torch
from torch import Tensor

import onepass
import timm_alone
from shapes import Shape, gpt2_shapes, resnet50_shapes


@dataclass(frozen=True)
class Target:
    """The contender is to take at most `ratio` times the time of the contender named `against`."""

    ratio: float
    against: str


class OneEach:
    """An optimizer for each parameter, as the optimizer in the backward pass has them; `step` steps one after the other."""

    def __init__(self, cls: type[torch.optim.Optimizer], params: list[Tensor], **options: Any):
        self.optimizers = [cls([p], **options) for p in params]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass(frozen=True)
class Contender:
    """An optimizer, how to make it, and the optimizer of onepass whose reference says what it has to compute.

    traffic: bytes per parameter, if every operand is read once and written once; None where that is not known.
    slow: takes part in one round out of seven.
    clips: takes the norm of the gradients and clips by it before every step.
    each: with an optimizer for each parameter.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    twin: type[onepass.optimizer.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    twin_options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    traffic: int | None = None
    dtype: torch.dtype = torch.float32
    slow: bool = False
    clips: bool = False
    each: bool = False

    def make(self, params: list[Tensor], lr: float) -> torch.optim.Optimizer | OneEach:
        cls = partial(OneEach, self.cls) if self.each else self.cls
        return cls(params, lr=lr, weight_decay=1e-2, **self.options)

    def make_twin(self, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return self.twin(params, lr=lr, weight_decay=1e-2, backend="reference", **self.twin_options)

    def step(self, optimizer: torch.optim.Optimizer | OneEach, params: list[Tensor], max_norm: float) -> None:
        if self.clips:
            clip(optimizer, params, max_norm)
        optimizer.step()


def clip(optimizer: torch.optim.Optimizer | OneEach, params: list[Tensor], max_norm: float) -> None:
    """The optimizer's own way of it, else torch's."""
    if isinstance(optimizer, onepass.optimizer.Optimizer):
        optimizer.clip_grad_norm_(max_norm)
    else:
        torch.nn.utils.clip_grad_norm_(params, max_norm)


@dataclass(frozen=True)
class Case:
    """Contenders, the first of which is the baseline, on parameters of some shapes.

    gradients: "random" is drawn anew each round; almost all tensors then take the gate none, some by chance layer.
        "tangent" is orthogonal to each row of the parameter, as it is under normalisation: the gate is channel.
    repeat: steps taken in a row and timed as one, where a step is short beside the waking of threads.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]
    contenders: tuple[Contender, ...]
    gradients: str = "random"
    rounds: int = 15
    repeat: int = 1


TORCH_ADAMW = Contender("torch fused AdamW", torch.optim.AdamW, onepass.AdamW, {"fused": True}, traffic=28)
TORCH_SGD = Contender("torch fused SGD", torch.optim.SGD, onepass.SGD, {"fused": True}, traffic=20)
ADAMW = Contender("onepass AdamW", onepass.AdamW, onepass.AdamW, traffic=28)
ADAMPROX = Contender("onepass AdamProx", onepass.AdamProx, onepass.AdamProx, traffic=28)
ADAMPROXL2 = Contender("onepass AdamProxL2", onepass.AdamProxL2, onepass.AdamProxL2, traffic=28)
ADAMP = Contender("onepass AdamP", onepass.AdamP, onepass.AdamP, traffic=28)
ADAMP_PROXIMAL = replace(
    ADAMP, name="onepass AdamP proximal", options={"decay": "proximal"}, twin_options={"decay": "proximal"}
)
ADAMP_TWO_VISITS = replace(ADAMP, name="onepass AdamP two-visit", options={"speculate": False}, traffic=36)
ADAMP_AS_TIMM = replace(ADAMP, name="onepass AdamP as timm", options=timm_alone.ADAMP, twin_options=timm_alone.ADAMP)
SGD = Contender("onepass SGD", onepass.SGD, onepass.SGD, traffic=20)
SGDP = Contender("onepass SGDP", onepass.SGDP, onepass.SGDP, traffic=20)
SGDP_AS_TIMM = replace(SGDP, name="onepass SGDP as timm", options=timm_alone.SGDP, twin_options=timm_alone.SGDP)
THEIR_ADAMP = Contender("adamp AdamP", adamp.AdamP, onepass.AdamP, slow=True)
THEIR_SGDP = Contender("adamp SGDP", adamp.SGDP, onepass.SGDP, twin_options={"project_momentum": True}, slow=True)


def of_timm(module: str, name: str, ours: Contender) -> tuple[Contender, ...]:
    """timm's class beside ours with the same arguments; empty where timm is not installed."""
    try:
        cls = timm_alone.optimizer(module, name)
    except ImportError:
        return ()
    return (replace(ours, name=f"timm {name}", cls=cls, traffic=None, slow=True),)


TIMM_ADAMP = of_timm("adamp", "AdamP", ADAMP_AS_TIMM)
TIMM_SGDP = of_timm("sgdp", "SGDP", SGDP_AS_TIMM)


def aimed(contender: Contender, *targets: tuple[float, Contender]) -> Contender:
    return replace(contender, targets=tuple(Target(ratio, against.name) for ratio, against in targets))


def with_momentum(contender: Contender) -> Contender:
    return replace(
        contender,
        options={**contender.options, "momentum": 0.9},
        twin_options={**contender.twin_options, "momentum": 0.9},
    )


def with_clip(contender: Contender, traffic: int) -> Contender:
    return replace(contender, name=f"{contender.name}, clip", clips=True, traffic=traffic)


def in_bf16(contender: Contender, traffic: int) -> Contender:
    """With bfloat16 parameters and gradients, and float32 moments."""
    return replace(contender, name=f"{contender.name} bf16", dtype=torch.bfloat16, traffic=traffic)


def one_each(contender: Contender, targets: tuple[Target, ...] = ()) -> Contender:
    return replace(contender, name=f"{contender.name} each", each=True, targets=targets)


ADAM_CONTENDERS = (
    TORCH_ADAMW,
    aimed(ADAMW, (1.00, TORCH_ADAMW)),
    aimed(ADAMPROX, (1.02, ADAMW)),
    ADAMPROXL2,
    aimed(ADAMP, (1.05, TORCH_ADAMW), (1 / 15, THEIR_ADAMP)),
    aimed(ADAMP_PROXIMAL, (1.05, TORCH_ADAMW), (1 / 15, THEIR_ADAMP)),
    ADAMP_TWO_VISITS,
    ADAMP_AS_TIMM,
    THEIR_ADAMP,
    *TIMM_ADAMP,
)
TORCH_CLIPPED = with_clip(TORCH_ADAMW, traffic=40)
CLIP_CONTENDERS = (
    TORCH_CLIPPED,
    aimed(with_clip(ADAMW, traffic=32), (0.85, TORCH_CLIPPED)),
    aimed(with_clip(ADAMP, traffic=32), (0.85, TORCH_CLIPPED)),
)
SGD_CONTENDERS = (
    *(with_momentum(contender) for contender in (TORCH_SGD, SGD, aimed(SGDP, (1.10, TORCH_SGD)))),
    SGDP_AS_TIMM,
    with_momentum(THEIR_SGDP),
    *TIMM_SGDP,
)
RESNET_CONTENDERS = (TORCH_ADAMW, ADAMW, aimed(ADAMP, (1.05, TORCH_ADAMW)), ADAMP_PROXIMAL, THEIR_ADAMP)
EACH_CONTENDERS = (
    TORCH_ADAMW,
    ADAMW,
    ADAMP,
    one_each(TORCH_ADAMW),
    *(one_each(fused, (Target(1.3, fused.name),)) for fused in (ADAMW, ADAMP)),
)
SMALL_CONTENDERS = (TORCH_ADAMW, aimed(ADAMW, (0.05, TORCH_ADAMW)), aimed(ADAMP, (0.05, TORCH_ADAMW)), THEIR_ADAMP)
BF16_CONTENDERS = (
    TORCH_ADAMW,
    in_bf16(ADAMW, traffic=22),
    aimed(in_bf16(ADAMP, traffic=26), (1.00, TORCH_ADAMW)),
    in_bf16(ADAMP_PROXIMAL, traffic=26),
)


def cases(quick: bool = False) -> list[Case]:
    """All of them; `quick` has the same contenders on small tensors."""
    gpt2 = gpt2_shapes(width=48, vocabulary=500, positions=64, blocks=2) if quick else gpt2_shapes()
    resnet = resnet50_shapes()[:12] if quick else resnet50_shapes()
    count = 50 if quick else 1000
    listed = [
        Case("gpt2-adam", "GPT-2, fp32", gpt2, ADAM_CONTENDERS),
        Case("gpt2-adam-tangent", "GPT-2, fp32, all matrices projected", gpt2, ADAM_CONTENDERS, "tangent"),
        Case("gpt2-sgd", "GPT-2, fp32, momentum", gpt2, SGD_CONTENDERS),
        Case("gpt2-sgd-tangent", "GPT-2, fp32, momentum, all matrices projected", gpt2, SGD_CONTENDERS, "tangent"),
        Case("gpt2-clip", "GPT-2, fp32, clipped by the norm", gpt2, CLIP_CONTENDERS),
        Case(
            "gpt2-clip-tangent",
            "GPT-2, fp32, clipped by the norm, all matrices projected",
            gpt2,
            CLIP_CONTENDERS,
            "tangent",
        ),
        Case("gpt2-bf16", "GPT-2, bf16 against fp32", gpt2, BF16_CONTENDERS),
        Case("resnet50", "ResNet-50, fp32", resnet, RESNET_CONTENDERS, rounds=40),
        Case("resnet50-tangent", "ResNet-50, fp32, all kernels projected", resnet, RESNET_CONTENDERS, "tangent", 40),
        Case("resnet50-each", "ResNet-50, fp32, an optimizer for each tensor", resnet, EACH_CONTENDERS, rounds=40),
        Case("small", "vectors of 64", ((64,),) * count, SMALL_CONTENDERS, rounds=40, repeat=10),
        Case(
            "small-matrices",
            "matrices of 8x8, each with a gate",
            ((8, 8),) * count,
            SMALL_CONTENDERS,
            rounds=40,
            repeat=10,
        ),
    ]
    return [replace(case, rounds=5) for case in listed] if quick else listed


# Contenders whose extra memory is measured, in fp32, as a share of the parameters' bytes.
MEMORY_TARGET = 0.01
MEMORY = (ADAMW, ADAMP, ADAMP_TWO_VISITS, with_momentum(SGDP), TORCH_ADAMW, THEIR_ADAMP)


def memory_shapes(quick: bool) -> tuple[Shape, ...]:
    """Not smaller than ResNet-50: what a process takes by the way, some 100 kB, would be a large share of less."""
    return resnet50_shapes() if quick else gpt2_shapes()
