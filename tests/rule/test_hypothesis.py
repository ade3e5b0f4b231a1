"""Random shapes, strides, hyper-parameters and gradients (Hypothesis): compiled backends against the reference."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from records import DTYPES, RECORDS, each_compiled
from side_by_side import SideBySide
from tensors import Layout, gradient, values

# All arguments but backend and capturable. No delta has a generated gradient on its threshold: a row of one element has a cosine of exactly 1.
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([0.0, 1e-4, 1e-2, 0.3]),
    "weight_decay": st.sampled_from([0.0, 1e-5, 0.1, 0.7, 3.0]),
    "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9, 0.95]), st.sampled_from([0.0, 0.9, 0.999])),
    "eps": st.sampled_from([0.0, 1e-12, 1e-8, 1e-3]),
    "momentum": st.sampled_from([0.0, 0.5, 0.9]),
    "dampening": st.sampled_from([0.0, 0.3, 1.0]),
    "nesterov": st.booleans(),
    "delta": st.sampled_from([0.0, 0.1, 0.37, 3.3, 1e3]),
    "wd_ratio": st.sampled_from([0.0, 0.1, 1.0, 2.0]),
    "decay": st.sampled_from(["decoupled", "proximal"]),
    "project_momentum": st.booleans(),
    "maximize": st.booleans(),
    "decouple_lr": st.booleans(),
    "speculate": st.booleans(),
}
LAYOUTS = st.builds(
    Layout,
    order=st.sampled_from(["reversed", "forward", "channels"]),
    inner=st.sampled_from([1, 1, 2, 3]),
    pad=st.sampled_from([0, 0, 1, 5]),
)
SHAPES = st.lists(st.integers(0, 9), max_size=5).map(tuple) | st.tuples(st.integers(1, 40), st.integers(1, 90))
KINDS = st.sampled_from(["random", "channel", "layer", "none", "zero"])


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, dict[str, Any], dict[str, Any], int]:
    """An optimizer, its arguments, tensors with layouts, and the number of steps."""
    name = draw(st.sampled_from(list(RECORDS)))
    taken = RECORDS[name].make([torch.zeros(1)], lr=0.1, backend="reference").defaults
    arguments = {key: draw(ARGUMENTS[key]) for key in taken if key in ARGUMENTS}
    if name == "SGD" and arguments["nesterov"]:
        arguments |= {"momentum": 0.5, "dampening": 0.0}
    arguments["decouple_lr"] &= arguments["lr"] > 0
    tensors = dict(
        starts=draw(
            st.lists(st.builds(_start, SHAPES, st.sampled_from(DTYPES), st.integers(0, 99)), min_size=1, max_size=4)
        ),
        layout=draw(LAYOUTS),
        gradient_layout=draw(LAYOUTS),
        moment_layout=draw(st.none() | LAYOUTS),
    )
    return name, arguments, tensors, draw(st.integers(1, 4))


def _start(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return values(shape, dtype, seed)


def _gradient(kind: str, p: Tensor, seed: int) -> Tensor:
    if kind == "zero":
        return torch.zeros_like(p)
    if kind == "random" or p.dim() < 2 or p.size(0) < 2 or p.numel() < 4 * p.size(0):
        return values(p.shape, p.dtype, seed)
    return gradient(kind, p, seed)


@each_compiled
@settings(max_examples=400)
@given(runs(), st.data())
def test_random_steps(backend: str, run: tuple[str, dict[str, Any], dict[str, Any], int], data: st.DataObject) -> None:
    name, arguments, tensors, steps = run
    both = SideBySide(RECORDS[name], arguments, backend=backend, **tensors)
    for step in range(steps):
        kind = data.draw(KINDS)
        both.step(lambda p, kind=kind, step=step: _gradient(kind, p, step))
