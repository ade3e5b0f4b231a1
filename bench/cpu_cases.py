"""The cases of the CPU's bench."""

from __future__ import annotations

from dataclasses import replace

import cases as c
from cases import Case, Contender
from shapes import Shape, gpt2_shapes, resnet50_shapes

TORCH_ADAMW = c.torch_adamw("torch fused AdamW", fused=True)
TORCH_SGD = c.torch_sgd("torch fused SGD")


def with_clip(contender: Contender, traffic: int) -> Contender:
    return replace(contender, name=f"{contender.name}, clip", clips=True, traffic={c.FP32: traffic})


def in_bf16(contender: Contender) -> Contender:
    """With bfloat16 parameters and gradients, and float32 moments."""
    return replace(contender, name=f"{contender.name} bf16", dtype=c.BF16)


def one_each(contender: Contender) -> Contender:
    return replace(contender, name=f"{contender.name} each", each=True)


ADAM_CONTENDERS = (
    TORCH_ADAMW, c.ADAMW, c.ADAMPROX, c.ADAMPROXL2, c.ADAMP, c.ADAMP_PROXIMAL, c.ADAMP_TWO_VISITS, c.ADAMP_AS_TIMM,
    *c.THEIR_ADAMP,
)  # fmt: skip
CLIP_CONTENDERS = (with_clip(TORCH_ADAMW, 40), with_clip(c.ADAMW, 32), with_clip(c.ADAMP, 32))
SGD_CONTENDERS = (TORCH_SGD, c.SGD, c.SGDP, c.SGDP_AS_TIMM, *c.THEIR_SGDP)
RESNET_CONTENDERS = (TORCH_ADAMW, c.ADAMW, c.ADAMP, c.ADAMP_PROXIMAL, c.THEIR_ADAMP[0])
EACH_CONTENDERS = (TORCH_ADAMW, c.ADAMW, c.ADAMP, one_each(TORCH_ADAMW), one_each(c.ADAMW), one_each(c.ADAMP))
SMALL_CONTENDERS = (TORCH_ADAMW, c.ADAMW, c.ADAMP, c.THEIR_ADAMP[0])
BF16_CONTENDERS = (TORCH_ADAMW, in_bf16(c.ADAMW), in_bf16(c.ADAMP), in_bf16(c.ADAMP_PROXIMAL))
# Contenders whose extra memory is measured, in fp32, as a share of the parameters' bytes.
MEMORY = (c.ADAMW, c.ADAMP, c.ADAMP_TWO_VISITS, c.SGDP, TORCH_ADAMW, c.THEIR_ADAMP[0])


def cases(quick: bool = False) -> list[Case]:
    """All of them; `quick` has the same contenders on small tensors."""
    gpt2 = gpt2_shapes(width=48, vocabulary=500, positions=64, blocks=2) if quick else gpt2_shapes()
    resnet = resnet50_shapes()[:12] if quick else resnet50_shapes()
    count = 50 if quick else 1000
    tangent = {"gradients": "tangent"}
    few = {"rounds": 40}  # of a model with few parameters
    short = {"rounds": 40, "repeat": 10}
    projected = "all matrices projected"
    listed = [
        Case("gpt2-adam", "GPT-2, fp32", gpt2, ADAM_CONTENDERS),
        Case("gpt2-adam-tangent", f"GPT-2, fp32, {projected}", gpt2, ADAM_CONTENDERS, **tangent),
        Case("gpt2-sgd", "GPT-2, fp32, momentum", gpt2, SGD_CONTENDERS),
        Case("gpt2-sgd-tangent", f"GPT-2, fp32, momentum, {projected}", gpt2, SGD_CONTENDERS, **tangent),
        Case("gpt2-clip", "GPT-2, fp32, clipped by the norm", gpt2, CLIP_CONTENDERS),
        Case("gpt2-clip-tangent", f"GPT-2, fp32, clipped by the norm, {projected}", gpt2, CLIP_CONTENDERS, **tangent),
        Case("gpt2-bf16", "GPT-2, bf16 against fp32", gpt2, BF16_CONTENDERS),
        Case("resnet50", "ResNet-50, fp32", resnet, RESNET_CONTENDERS, **few),
        Case("resnet50-tangent", "ResNet-50, fp32, all kernels projected", resnet, RESNET_CONTENDERS, **tangent, **few),
        Case("resnet50-each", "ResNet-50, fp32, an optimizer for each tensor", resnet, EACH_CONTENDERS, **few),
        Case("small", "vectors of 64", ((64,),) * count, SMALL_CONTENDERS, **short),
        Case("small-matrices", "matrices of 8x8, each with a gate", ((8, 8),) * count, SMALL_CONTENDERS, **short),
    ]
    return [replace(case, rounds=5) for case in listed] if quick else listed


def memory_shapes(quick: bool) -> tuple[Shape, ...]:
    """Not smaller than ResNet-50: what a process takes by the way, some 100 kB, would be a large share of less."""
    return resnet50_shapes() if quick else gpt2_shapes()
