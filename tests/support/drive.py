"""A training run without a model: a few parameters, and a sequence of gradients through every gate."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from tensors import generator, gradient, values

SHAPES: list[tuple[int, ...]] = [(6, 20), (13,), (8, 3, 3, 3), (), (1, 9), (20, 150)]
KINDS = ["none", "channel", "channel", "layer", "channel"]


def parameters(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    return [values(shape, dtype, seed).requires_grad_() for seed, shape in enumerate(shapes)]


def parameters_of(opt: Any) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def gradient_at(p: Tensor, time: int) -> Tensor:
    """The gradient of `p` at a time: the same for the same weights."""
    if p.dim() > 1 and p.size(0) > 1:
        return gradient(KINDS[time % len(KINDS)], p, time)
    return torch.randn(p.shape, generator=generator(time), dtype=torch.float64).to(p.dtype)


def feed(opt: Any, time: int, sign: float = 1.0) -> None:
    for p in parameters_of(opt):
        p.grad = sign * gradient_at(p, time)


def train(opt: Any, times: Iterable[int], sign: float = 1.0) -> Any:
    """One step at every time; returns the optimizer."""
    for time in times:
        feed(opt, time, sign)
        opt.step()
    return opt


def train_both(ours: Any, theirs: Any, times: Iterable[int], sign: float = 1.0) -> None:
    """Steps both on the gradients of ours; `theirs` gets them times `sign`."""
    for time in times:
        feed(ours, time)
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            assert p.grad is not None
            q.grad = sign * p.grad
        ours.step()
        theirs.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state dict after torch.save and torch.load with weights_only=True."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
