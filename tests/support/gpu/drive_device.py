"""The training run of tests/support/drive.py with its tensors on the device. Gradients come from the CPU, so that they do not depend on the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from compare import bits, everything
from drive import SHAPES, gradient_at, parameters, parameters_of
from gpu.target import DEVICE, to_device, to_host

__all__ = ["SHAPES", "assert_same_everywhere", "everything_on_host", "feed", "on_device", "train"]


def on_device(dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Tensor]:
    return [to_device(p).requires_grad_() for p in parameters(dtype, shapes)]


def feed(opt: Any, time: int) -> None:
    """Gradients in new tensors, as a backward pass leaves them."""
    for p in parameters_of(opt):
        p.grad = gradient_at(to_host(p), time).to(p.device)


def train(opt: Any, times: Iterable[int]) -> Any:
    for time in times:
        feed(opt, time)
        opt.step()
    return opt


def everything_on_host(opt: Any) -> dict[str, Tensor]:
    return {name: to_host(tensor) for name, tensor in everything(opt).items() if not name.endswith("gradient")}


def assert_same_everywhere(got: Any, want: Any, but: tuple[str, ...] = ()) -> None:
    """Raises unless parameters and states have the same bits, on any device."""
    a, b = everything_on_host(got), everything_on_host(want)
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        if not name.endswith(but or ("nothing",)):
            differ = bits(tensor) != bits(b[name])
            assert not differ.any(), f"{name} on {DEVICE}: {int(differ.sum())} of {differ.numel()} differ"
