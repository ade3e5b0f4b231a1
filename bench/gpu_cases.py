"""The cases of the GPU's bench."""

from __future__ import annotations

from dataclasses import replace

import cases as c
from cases import Case, Contender
from shapes import gpt2_shapes, llama_shapes, resnet50_shapes

# The backends of onepass that are timed, side by side. Another one is one more name.
BACKENDS = ("cuda", "triton")


def on_each(*contenders: Contender) -> tuple[Contender, ...]:
    """A contender for each backend."""
    suffix = {backend: "" if backend == "cuda" else f" ({backend})" for backend in BACKENDS}
    return tuple(replace(own, name=f"{own.name}{suffix[b]}", backend=b) for own in contenders for b in BACKENDS)


TORCH_FUSED = replace(c.torch_adamw("torch AdamW fused", fused=True), graph=True)
TORCH_FOREACH = replace(c.torch_adamw("torch AdamW foreach", foreach=True), traffic={})
TORCH_FUSED_BF16 = replace(TORCH_FUSED, name="torch AdamW fused, bf16 moments", graph=False, loose=True)
TORCH_FUSED_FP32 = replace(TORCH_FUSED, name="torch AdamW fused, fp32", dtype=c.FP32)
TORCH_SGD = c.torch_sgd("torch SGD fused")

ADAM_CONTENDERS = (
    TORCH_FUSED,
    TORCH_FOREACH,
    *on_each(c.ADAMW, c.ADAMPROX, c.ADAMPROXL2, c.ADAMP, c.ADAMP_PROXIMAL, c.ADAMP_TWO_VISITS, c.ADAMP_AS_TIMM),
    *c.THEIR_ADAMP,
)
SGD_CONTENDERS = (TORCH_SGD, *on_each(c.SGD, c.SGDP, c.SGDP_AS_TIMM), *c.THEIR_SGDP)
TANGENT_CONTENDERS = (
    TORCH_FUSED, *on_each(c.ADAMW, c.ADAMP, c.ADAMP_PROXIMAL, c.ADAMP_TWO_VISITS), TORCH_SGD, *on_each(c.SGDP),
)  # fmt: skip
MANY_CONTENDERS = (TORCH_FUSED, TORCH_FOREACH, *on_each(c.ADAMW, c.ADAMP))
SMALL_CONTENDERS = (*MANY_CONTENDERS, *on_each(c.ADAMP_AS_TIMM), *c.THEIR_ADAMP, TORCH_SGD, *on_each(c.SGD))
BF16_CONTENDERS = (TORCH_FUSED_FP32, TORCH_FUSED_BF16, *on_each(c.ADAMW, c.ADAMP, c.ADAMP_PROXIMAL))

ALL = tuple({own.name: own for own in ADAM_CONTENDERS + SGD_CONTENDERS + BF16_CONTENDERS}.values())


def cases(quick: bool = False) -> list[Case]:
    """All of them; `quick` has the same contenders on small tensors."""
    gpt2 = gpt2_shapes(width=48, vocabulary=500, positions=64, blocks=2) if quick else gpt2_shapes()
    llama = llama_shapes(width=64, mlp=160, kv=16, vocabulary=400, blocks=2) if quick else llama_shapes()
    resnet = resnet50_shapes()[:12] if quick else resnet50_shapes()
    few, many = (40, 60) if quick else (1_000, 10_000)
    everything = ADAM_CONTENDERS + SGD_CONTENDERS
    tangent = {"gradients": "tangent"}
    small = {"gradients": "fixed", "launch_bound": True}
    matrices, kernels = "fp32, every matrix projected", "fp32, every kernel projected"
    return [
        Case("gpt2", "GPT-2, fp32", gpt2, everything),
        Case("gpt2-tangent", f"GPT-2, {matrices}", gpt2, TANGENT_CONTENDERS, **tangent),
        Case("gpt2-bf16", "GPT-2, bf16", gpt2, BF16_CONTENDERS, c.BF16),
        Case("resnet50", "ResNet-50, fp32", resnet, everything),
        Case("resnet50-tangent", f"ResNet-50, {kernels}", resnet, TANGENT_CONTENDERS, **tangent),
        Case("llama-1b", "Llama 1 B, fp32", llama, everything),
        Case("llama-1b-tangent", f"Llama 1 B, {matrices}", llama, TANGENT_CONTENDERS, **tangent),
        Case("llama-1b-bf16", "Llama 1 B, bf16", llama, BF16_CONTENDERS, c.BF16),
        Case(f"{few}-vectors", "vectors of 64", ((64,),) * few, SMALL_CONTENDERS, **small),
        Case(f"{few}-matrices", "matrices of 8 x 8", ((8, 8),) * few, SMALL_CONTENDERS, **small),
        Case(f"{many}-vectors", "vectors of 64", ((64,),) * many, MANY_CONTENDERS, **small),
    ]
