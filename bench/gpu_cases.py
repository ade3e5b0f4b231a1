"""What is timed on a GPU: contenders, cases, and how many bytes a parameter costs each of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import onepass
import timm_alone
from shapes import Shape, gpt2_shapes, llama_shapes, numel_of, resnet50_shapes

# The backends of onepass that are timed, side by side. Another one is one more name.
BACKENDS = ("cuda", "triton")

FP32, BF16 = torch.float32, torch.bfloat16

# Bytes per parameter if every operand is read once and written once; g is only read. fp32: 4 bytes each. bf16: 2 for p
# and g, 4 for the moments.
#   Adam-like           fp32: p g m v read, p m v written = 28    bf16: 2+2+4+4 + 2+4+4 = 22
#   AdamP, two visits   p and g once more: 36 and 26; in bf16 always, as a 16-bit weight cannot be corrected
#   SGD with momentum   fp32: p g b read, p b written = 20        bf16: 2+2+4 + 2+4 = 14, projected 18
ADAM_BYTES = {FP32: 28, BF16: 22}
ADAMP_BYTES = {FP32: 28, BF16: 26}
TWO_VISIT_BYTES = {FP32: 36, BF16: 26}
SGD_BYTES = {FP32: 20, BF16: 14}
SGDP_BYTES = {FP32: 20, BF16: 18}
# torch keeps the moments of bf16 parameters in bf16: fewer bytes, and other numbers.
TORCH_ADAM_BYTES = {FP32: 28, BF16: 14}
TORCH_SGD_BYTES = {FP32: 20, BF16: 10}


@dataclass(frozen=True)
class Contender:
    """An optimizer, and the optimizer of onepass whose reference says what it has to compute.

    load: returns the class; ImportError where it is not installed. The first contender of a `family` in a case is what
        the others are compared with.
    traffic: bytes per parameter; empty where that is not known.
    backend: of onepass; "" for the optimizers of others.
    graph: its captured step is timed too. dtype: its parameters', if not the case's.
    loose: its moments are rounded to the parameters' dtype, so its numbers are its own.
    """

    name: str
    load: Callable[[], type[torch.optim.Optimizer]]
    twin: type[onepass.optimizer.Optimizer]
    family: str
    options: dict[str, Any] = field(default_factory=dict)
    twin_options: dict[str, Any] = field(default_factory=dict)
    traffic: dict[torch.dtype, int] = field(default_factory=dict)
    backend: str = ""
    graph: bool = False
    dtype: torch.dtype | None = None
    loose: bool = False

    def make(self, params: list[Tensor], lr: float, backend: str = "", **options: Any) -> torch.optim.Optimizer:
        own = {**self.options, **({"backend": backend} if backend else {}), **options}
        return self.load()(params, lr=lr, weight_decay=1e-2, **own)

    def make_twin(self, params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return self.twin(params, lr=lr, weight_decay=1e-2, backend="reference", **self.twin_options)


@dataclass(frozen=True)
class Case:
    """gradients: "random" changes from round to round, and projected tensors take the gate none, some by chance layer;
        "tangent" is orthogonal to each row of the parameter: the gate is channel. "fixed" is one random gradient.
    launch_bound: the host takes longer than the device, so that a step is timed with what it waits for the host.
    """

    name: str
    title: str
    shapes: tuple[Shape, ...]
    contenders: tuple[Contender, ...]
    dtype: torch.dtype = FP32
    gradients: str = "random"
    launch_bound: bool = False

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


# ------------------------------------------------------------------ contenders


def ours(cls: str, twin: type, family: str, traffic: dict, name: str = "", graph: bool = False, **options: Any) -> Any:
    """A contender for each backend."""
    suffix = {backend: "" if backend == "cuda" else f" ({backend})" for backend in BACKENDS}
    return tuple(
        Contender(
            f"onepass {name or cls}{suffix[backend]}",
            lambda: getattr(onepass, cls),
            twin,
            family,
            options,
            options,
            traffic,
            backend,
            graph,
        )
        for backend in BACKENDS
    )


def of_package(package: str, name: str) -> Callable[[], type[torch.optim.Optimizer]]:
    return lambda: getattr(importlib.import_module(package), name)


def torch_adamw(**options: Any) -> Contender:
    return Contender("", lambda: torch.optim.AdamW, onepass.AdamW, "adam", options, traffic=TORCH_ADAM_BYTES)


TORCH_FUSED = replace(torch_adamw(fused=True), name="torch AdamW fused", graph=True)
TORCH_FOREACH = replace(torch_adamw(foreach=True), name="torch AdamW foreach", traffic={})
TORCH_FUSED_BF16 = replace(TORCH_FUSED, name="torch AdamW fused, bf16 moments", graph=False, loose=True)
TORCH_FUSED_FP32 = replace(TORCH_FUSED, name="torch AdamW fused, fp32", dtype=FP32)
MOMENTUM = {"momentum": 0.9}
TORCH_SGD = Contender(
    "torch SGD fused",
    lambda: torch.optim.SGD,
    onepass.SGD,
    "sgd",
    {"fused": True, **MOMENTUM},
    MOMENTUM,
    TORCH_SGD_BYTES,
)
ADAMW = ours("AdamW", onepass.AdamW, "adam", ADAM_BYTES, graph=True)
ADAMPROX = ours("AdamProx", onepass.AdamProx, "adam", ADAM_BYTES)
ADAMPROXL2 = ours("AdamProxL2", onepass.AdamProxL2, "adam", ADAM_BYTES)
ADAMP = ours("AdamP", onepass.AdamP, "adam", ADAMP_BYTES, graph=True)
ADAMP_PROXIMAL = ours("AdamP", onepass.AdamP, "adam", ADAMP_BYTES, "AdamP proximal", decay="proximal")
ADAMP_TWO_VISITS = ours("AdamP", onepass.AdamP, "adam", TWO_VISIT_BYTES, "AdamP two-visit", speculate=False)
# With the arguments that timm's factory passes.
ADAMP_AS_TIMM = ours("AdamP", onepass.AdamP, "adam", ADAMP_BYTES, "AdamP as timm", **timm_alone.ADAMP)
SGDP_AS_TIMM = ours("SGDP", onepass.SGDP, "sgd", SGDP_BYTES, "SGDP as timm", **timm_alone.SGDP)
SGD = ours("SGD", onepass.SGD, "sgd", SGD_BYTES, **MOMENTUM)
SGDP = ours("SGDP", onepass.SGDP, "sgd", SGDP_BYTES, **MOMENTUM)
THEIR_ADAMP = (
    Contender("adamp AdamP", of_package("adamp", "AdamP"), onepass.AdamP, "adam"),
    Contender(
        "timm AdamP",
        partial(timm_alone.optimizer, "adamp", "AdamP"),
        onepass.AdamP,
        "adam",
        timm_alone.ADAMP,
        timm_alone.ADAMP,
    ),
)
# The package projects its buffer too, which the paper does not.
THEIR_SGDP = (
    Contender(
        "adamp SGDP", of_package("adamp", "SGDP"), onepass.SGDP, "sgd", MOMENTUM, {**MOMENTUM, "project_momentum": True}
    ),
    Contender(
        "timm SGDP",
        partial(timm_alone.optimizer, "sgdp", "SGDP"),
        onepass.SGDP,
        "sgd",
        timm_alone.SGDP,
        timm_alone.SGDP,
    ),
)

ADAM_CONTENDERS = (
    TORCH_FUSED,
    TORCH_FOREACH,
    *ADAMW,
    *ADAMPROX,
    *ADAMPROXL2,
    *ADAMP,
    *ADAMP_PROXIMAL,
    *ADAMP_TWO_VISITS,
    *ADAMP_AS_TIMM,
    *THEIR_ADAMP,
)
SGD_CONTENDERS = (TORCH_SGD, *SGD, *SGDP, *SGDP_AS_TIMM, *THEIR_SGDP)
TANGENT_CONTENDERS = (TORCH_FUSED, *ADAMW, *ADAMP, *ADAMP_PROXIMAL, *ADAMP_TWO_VISITS, TORCH_SGD, *SGDP)
SMALL_CONTENDERS = (TORCH_FUSED, TORCH_FOREACH, *ADAMW, *ADAMP, *ADAMP_AS_TIMM, *THEIR_ADAMP, TORCH_SGD, *SGD)
MANY_CONTENDERS = (TORCH_FUSED, TORCH_FOREACH, *ADAMW, *ADAMP)
BF16_CONTENDERS = (TORCH_FUSED_FP32, TORCH_FUSED_BF16, *ADAMW, *ADAMP, *ADAMP_PROXIMAL)

ALL = tuple({c.name: c for c in ADAM_CONTENDERS + SGD_CONTENDERS + BF16_CONTENDERS}.values())


def missing(contender: Contender) -> str | None:
    """Why a contender cannot be timed here, or None."""
    if contender.backend and contender.backend != "cuda":
        return onepass.backends()[contender.backend]
    try:
        contender.load()
    except ImportError as error:
        return f"{error}"
    return None


# ------------------------------------------------------------------ cases


def cases(quick: bool = False) -> list[Case]:
    """All of them; `quick` has the same contenders on small tensors."""
    gpt2 = gpt2_shapes(width=48, vocabulary=500, positions=64, blocks=2) if quick else gpt2_shapes()
    llama = llama_shapes(width=64, mlp=160, kv=16, vocabulary=400, blocks=2) if quick else llama_shapes()
    resnet = resnet50_shapes()[:12] if quick else resnet50_shapes()
    few, many = (40, 60) if quick else (1_000, 10_000)
    everything = ADAM_CONTENDERS + SGD_CONTENDERS
    return [
        Case("gpt2", "GPT-2, fp32", gpt2, everything),
        Case("gpt2-tangent", "GPT-2, fp32, every matrix projected", gpt2, TANGENT_CONTENDERS, gradients="tangent"),
        Case("gpt2-bf16", "GPT-2, bf16", gpt2, BF16_CONTENDERS, dtype=BF16),
        Case("resnet50", "ResNet-50, fp32", resnet, everything),
        Case(
            "resnet50-tangent",
            "ResNet-50, fp32, every kernel projected",
            resnet,
            TANGENT_CONTENDERS,
            gradients="tangent",
        ),
        Case("llama-1b", "Llama 1 B, fp32", llama, everything),
        Case(
            "llama-1b-tangent",
            "Llama 1 B, fp32, every matrix projected",
            llama,
            TANGENT_CONTENDERS,
            gradients="tangent",
        ),
        Case("llama-1b-bf16", "Llama 1 B, bf16", llama, BF16_CONTENDERS, dtype=BF16),
        Case(f"{few}-vectors", "vectors of 64", ((64,),) * few, SMALL_CONTENDERS, FP32, "fixed", True),
        Case(f"{few}-matrices", "matrices of 8 x 8", ((8, 8),) * few, SMALL_CONTENDERS, FP32, "fixed", True),
        Case(f"{many}-vectors", "vectors of 64", ((64,),) * many, MANY_CONTENDERS, FP32, "fixed", True),
    ]
