"""Parameters and gradients for tests: layouts, guards around them, and gradients with a known gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------ layouts


@dataclass(frozen=True)
class Layout:
    """The memory layout of a tensor.

    order: dimensions from the fastest; "reversed" is C order, "forward" Fortran's, "channels" dim 1 first.
    inner: stride of the fastest dimension. pad: unused elements after each run along a dimension.
    """

    order: str = "reversed"
    inner: int = 1
    pad: int = 0

    def strides(self, shape: Sequence[int]) -> tuple[int, ...]:
        dims = list(range(len(shape)))
        if self.order == "reversed" or (self.order == "channels" and len(shape) < 3):
            dims.reverse()
        elif self.order == "channels":
            dims = [1, *reversed(dims[2:]), 0]
        strides, step = [0] * len(shape), self.inner
        for dim in dims:
            strides[dim] = step
            step = step * max(shape[dim], 1) + self.pad
        return tuple(strides)


LAYOUTS = {
    "contiguous": Layout(),
    "channels_last": Layout(order="channels"),
    "transposed": Layout(order="forward"),
    "gapped": Layout(inner=2),
    "padded": Layout(pad=3),
    "gapped_transposed": Layout(order="forward", inner=3, pad=1),
}

# Elements before and after every tensor. 5 aligns no tensor to more than its own element.
GUARD = 5
FORBIDDEN = -7.25


class Guarded:
    """A tensor of given values and layout in a larger buffer whose other elements must never be written."""

    def __init__(self, values: Tensor, layout: Layout = LAYOUTS["contiguous"]):
        strides = layout.strides(values.shape)
        reach = sum(st * (si - 1) for st, si in zip(strides, values.shape, strict=True))
        length = 2 * GUARD + (reach + 1 if values.numel() else 0)
        self.forbidden = FORBIDDEN if values.dtype.is_signed else 249
        self.buffer = torch.full((length,), self.forbidden, dtype=values.dtype)
        self.tensor = self.buffer.as_strided(values.shape, strides, GUARD)
        self.tensor.copy_(values)
        self.free = torch.ones(length, dtype=torch.bool)
        self.free.as_strided(values.shape, strides, GUARD).fill_(False)

    def assert_guards_intact(self, name: str) -> None:
        touched = (self.buffer != self.forbidden) & self.free
        assert not touched.any(), (
            f"{name}: written outside of the tensor, at buffer offsets "
            f"{(touched.nonzero().flatten() - GUARD).tolist()[:5]} from its first element"
        )


# ------------------------------------------------------------------ sizes

# Lanes of a pack are 8 or 16, runs are 64 packs, items 32768 elements: sizes on both sides of each.
SMALL_SHAPES: list[tuple[int, ...]] = [
    (), (0,), (1,), (7,), (15,), (16,), (17,), (555,), (0, 5), (5, 0), (1, 1), (1, 17), (17, 1),
    (3, 15), (16, 16), (5, 17), (3, 7, 3, 3), (2, 3, 4, 5, 2), (4, 555),
]  # fmt: skip
LARGE_SHAPES: list[tuple[int, ...]] = [
    (2048 * 32 + 1,), (2, 2048 * 32 + 1), (1, 32769), (3, 32768), (40, 1025), (5000, 9), (9000, 1),
    (33, 16, 9, 7),
]  # fmt: skip


def values(shape: Sequence[int], dtype: torch.dtype, seed: int, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(tuple(shape), generator=generator(seed), dtype=torch.float64)).to(dtype)


# ------------------------------------------------------------------ gradients and gates


def rows_of(t: Tensor) -> Tensor:
    return t.double().reshape(t.size(0), -1)


def _without_radial_part(g: Tensor, p: Tensor) -> Tensor:
    """g less its component along p, row by row; a row of zeros has none."""
    return g - p * ((p * g).sum(1, keepdim=True) / (p * p).sum(1, keepdim=True).clamp(min=1e-300))


def gradient(kind: str, p: Tensor, seed: int) -> Tensor:
    """A gradient for `p`, at least 2-dimensional, whose gate is `kind`: "channel", "layer" or "none".

    "channel" needs rows of two elements or more, "layer" two such rows or more.
    """
    p_rows = rows_of(p.detach())
    g = torch.randn(p_rows.shape, generator=generator(seed), dtype=torch.float64)
    g = _without_radial_part(g, p_rows)
    if kind == "none":
        g = g + 2 * p_rows
    elif kind == "layer":
        # Rows along p with coefficients that cancel over the whole tensor: each row fails, the sum passes.
        squares = (p_rows * p_rows).sum(1, keepdim=True)
        signs = torch.where(torch.arange(len(p_rows)) % 2 == 0, 1.0, -1.0)[:, None]
        along = signs - (signs * squares).sum() / squares.sum().clamp(min=1e-300)
        g = g + 2 * along * p_rows
    else:
        assert kind == "channel", kind
    return g.reshape(p.shape).to(p.dtype)


def scaled_cosine(p: Tensor, g: Tensor) -> float:
    """max over rows of |cos(g, p)| * sqrt(row length), in float64."""
    p_rows, g_rows = rows_of(p.detach()), rows_of(g)
    cosines = (p_rows * g_rows).sum(1).abs() / (p_rows.norm(dim=1) * g_rows.norm(dim=1))
    return float(cosines.max()) * math.sqrt(p_rows.size(1))


class Gradients:
    """Gradients that change the gate of each tensor at every step, so that predictions go wrong."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, p: Tensor) -> Tensor:
        self.count += 1
        if p.dim() > 1 and p.size(0) > 1 and p.numel() > p.size(0):
            return gradient(("none", "channel", "layer")[self.count % 7 % 3], p, self.count)
        noise = torch.randn(p.shape, generator=generator(self.count), dtype=torch.float64)
        return noise.to(p.dtype)
