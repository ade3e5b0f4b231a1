"""Records of contenders and cases, and the contenders that the cases of the CPU and of the GPU share.

"AdamP as timm" and "SGDP as timm" have the arguments that timm's factory passes, and "timm AdamP" and "timm SGDP" are
timm's classes with them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import onepass
import timm_alone
from shapes import Shape, numel_of

FP32, BF16 = torch.float32, torch.bfloat16
Bytes = dict[torch.dtype, float]

# Bytes per parameter if every operand is read once and written once; g is only read. fp32: 4 bytes each. bf16: 2 for p
# and g, 4 for the moments.
#   Adam-like           fp32: p g m v read, p m v written = 28    bf16: 2+2+4+4 + 2+4+4 = 22
#   AdamP, two visits   p and g once more: 36 and 26; in bf16 always, as a 16-bit weight cannot be corrected
#   SGD with momentum   fp32: p g b read, p b written = 20        bf16: 2+2+4 + 2+4 = 14, projected 18
ADAM_BYTES: Bytes = {FP32: 28, BF16: 22}
ADAMP_BYTES: Bytes = {FP32: 28, BF16: 26}
TWO_VISIT_BYTES: Bytes = {FP32: 36, BF16: 26}
SGD_BYTES: Bytes = {FP32: 20, BF16: 14}
SGDP_BYTES: Bytes = {FP32: 20, BF16: 18}
# torch keeps the moments of bf16 parameters in bf16: fewer bytes, and other numbers.
TORCH_ADAM_BYTES: Bytes = {FP32: 28, BF16: 14}
TORCH_SGD_BYTES: Bytes = {FP32: 20, BF16: 10}


class OneEach:
    """An optimizer for each parameter, as the optimizer in the backward pass has them; `step` steps one after the other."""

    def __init__(self, cls: type[torch.optim.Optimizer], params: list[Tensor], **options: Any):
        self.optimizers = [cls([p], **options) for p in params]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


@dataclass(frozen=True)
class Contender:
    """An optimizer, and the optimizer of onepass whose reference says what it has to compute.

    load: returns the class; ImportError where it is not installed.
    family: the first contender of a family in a case is what the others are compared with.
    traffic: bytes per parameter; empty where that is not known.
    backend: of onepass; "" leaves the choice to onepass, and is for the optimizers of others.
    dtype: its parameters', if not the case's.
    loose: its moments are rounded to the parameters' dtype, so its numbers are its own.
    slow: on the CPU it takes part in one round out of seven. graph: on a GPU its captured step is timed too.
    clips: takes the norm of the gradients and clips by it before every step. each: with an optimizer for each parameter.
    """

    name: str
    load: Callable[[], type[torch.optim.Optimizer]]
    twin: type[onepass.optimizer.Optimizer]
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    twin_options: dict[str, Any] = field(default_factory=dict)
    traffic: Bytes = field(default_factory=dict)
    backend: str = ""
    dtype: torch.dtype | None = None
    loose: bool = False
    slow: bool = False
    graph: bool = False
    clips: bool = False
    each: bool = False

    def make(self, params: list[Tensor], lr: float, backend: str = "", **options: Any) -> Any:
        cls = partial(OneEach, self.load()) if self.each else self.load()
        own = {**self.options, **({"backend": backend} if backend else {}), **options}
        return cls(params, lr=lr, weight_decay=1e-2, **own)

    def make_twin(self, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return self.twin(params, lr=lr, weight_decay=1e-2, backend="reference", **self.twin_options)

    def step_of(self, optimizer: Any, params: list[Tensor], max_norm: float) -> Callable[[], object]:
        """The function that is timed: a step, after a clipping where the contender clips."""
        if not self.clips:
            return optimizer.step
        ours = isinstance(optimizer, onepass.optimizer.Optimizer)
        clip = optimizer.clip_grad_norm_ if ours else partial(torch.nn.utils.clip_grad_norm_, params)

        def step() -> None:
            clip(max_norm)
            optimizer.step()

        return step


@dataclass(frozen=True)
class Case:
    """Contenders on parameters of some shapes.

    gradients: "random" changes from round to round, and projected tensors take the gate none, some by chance layer.
        "tangent" is orthogonal to each row of the parameter, as it is under normalisation: the gate is channel. "fixed" is
        one random gradient.
    launch_bound: the host takes longer than the GPU, so that a step is timed with what it waits for the host.
    rounds, repeat: on the CPU; `repeat` steps are taken in a row and timed as one, where a step is short beside the waking
        of threads. A GPU's clock chooses both.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]
    contenders: tuple[Contender, ...]
    dtype: torch.dtype = FP32
    gradients: str = "random"
    launch_bound: bool = False
    rounds: int = 15
    repeat: int = 1

    @property
    def numel(self) -> int:
        return numel_of(self.shapes)

    @property
    def bytes_held(self) -> int:
        """Of p, g and two moments: what has to fit into the cache for a step not to reach memory."""
        return self.numel * (16 if self.dtype == FP32 else 12)

    def dtype_of(self, contender: Contender) -> torch.dtype:
        return contender.dtype or self.dtype

    def baseline_of(self, contender: Contender) -> Contender:
        return next(other for other in self.contenders if other.family == contender.family)

    def without(self, names: Iterable[str]) -> Case:
        return replace(self, contenders=tuple(c for c in self.contenders if c.name not in names))


def missing(contender: Contender) -> str | None:
    """Why a contender cannot be timed here, or None."""
    if contender.backend not in ("", "cuda"):
        return onepass.backends()[contender.backend]
    try:
        contender.load()
    except ImportError as error:
        return f"{error}"
    return None


# ------------------------------------------------------------------ contenders


def ours(cls: Any, family: str, traffic: Bytes, name: str = "", graph: bool = False, **options: Any) -> Contender:
    name = f"onepass {name or cls.__name__}"
    return Contender(name, lambda: cls, cls, family, options, options, traffic, graph=graph)


def torch_adamw(name: str, **options: Any) -> Contender:
    return Contender(name, lambda: torch.optim.AdamW, onepass.AdamW, "adam", options, {}, TORCH_ADAM_BYTES)


def torch_sgd(name: str) -> Contender:
    options = {"fused": True, **MOMENTUM}
    return Contender(name, lambda: torch.optim.SGD, onepass.SGD, "sgd", options, MOMENTUM, TORCH_SGD_BYTES)


def of_adamp(name: str, twin: type, family: str, options: Any, twin_options: Any) -> Contender:
    def load() -> Any:
        return getattr(importlib.import_module("adamp"), name)

    return Contender(f"adamp {name}", load, twin, family, options, twin_options, slow=True)


def of_timm(name: str, like: Contender) -> Contender:
    """timm's class with the same arguments."""
    load = partial(timm_alone.optimizer, name.lower(), name)
    return replace(like, name=f"timm {name}", load=load, traffic={}, slow=True)


MOMENTUM = {"momentum": 0.9}
ADAMW = ours(onepass.AdamW, "adam", ADAM_BYTES, graph=True)
ADAMPROX = ours(onepass.AdamProx, "adam", ADAM_BYTES)
ADAMPROXL2 = ours(onepass.AdamProxL2, "adam", ADAM_BYTES)
ADAMP = ours(onepass.AdamP, "adam", ADAMP_BYTES, graph=True)
ADAMP_PROXIMAL = ours(onepass.AdamP, "adam", ADAMP_BYTES, "AdamP proximal", decay="proximal")
ADAMP_TWO_VISITS = ours(onepass.AdamP, "adam", TWO_VISIT_BYTES, "AdamP two-visit", speculate=False)
ADAMP_AS_TIMM = ours(onepass.AdamP, "adam", ADAMP_BYTES, "AdamP as timm", **timm_alone.ADAMP)
SGD = ours(onepass.SGD, "sgd", SGD_BYTES, **MOMENTUM)
SGDP = ours(onepass.SGDP, "sgd", SGDP_BYTES, **MOMENTUM)
SGDP_AS_TIMM = ours(onepass.SGDP, "sgd", SGDP_BYTES, "SGDP as timm", **timm_alone.SGDP)
THEIR_ADAMP = (of_adamp("AdamP", onepass.AdamP, "adam", {}, {}), of_timm("AdamP", ADAMP_AS_TIMM))
# The package projects its buffer too, which the paper does not.
THEIR_SGDP = (
    of_adamp("SGDP", onepass.SGDP, "sgd", MOMENTUM, {**MOMENTUM, "project_momentum": True}),
    of_timm("SGDP", SGDP_AS_TIMM),
)
