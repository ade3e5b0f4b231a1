"""torch.compile: `step` runs uncompiled, outside and inside compiled regions, with the bits of a plain loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import compiled
import onepass
import toy
from in_backward import step_in_backward
from records import RECORDS, Record, each_optimizer
from tools import assert_same_weights

X, Y = toy.data().tensors
# Traces and partitions like the default backend, then runs torch's own kernels: the bits of an uncompiled loop.
BACKEND = "aot_eager"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def made(record: Record) -> Any:
    return compiled.training(lambda params, **_: record.make(params, **record.typical))


def trained(record: Record, inside: bool = False, outside: bool = False, steps: int = 4) -> torch.nn.Module:
    """Trains with the step inside or outside the compiled region, and another learning rate at each step."""
    model, opt, train_step = made(record)
    called = torch.compile(model, backend=BACKEND) if outside else model
    run = torch.compile(train_step, backend=BACKEND) if inside else train_step
    for count in range(steps):
        opt.param_groups[0]["lr"] = record.typical["lr"] / (1 + count)
        run(called, X, Y)
    return model


@each_optimizer
def test_step_inside_a_compiled_region(record: Record) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = trained(record, inside=True)
    assert_same_weights(got, trained(record))
    assert not [str(each.message) for each in caught if "onepass" in str(each.message)]  # e.g. untraceable code


def test_step_outside_a_compiled_region() -> None:
    assert_same_weights(trained(RECORDS["AdamP"], outside=True), trained(RECORDS["AdamP"]))


def test_step_is_one_graph_break() -> None:
    """Dynamo neither traces nor guards the step: steps and new learning rates cause no recompilation."""
    trained(RECORDS["AdamP"], inside=True, steps=2)
    breaks = [reason for reason in counters["graph_break"] if "onepass" in reason]
    assert len(breaks) == 1 and "wrapped with `torch.compiler.disable`" in breaks[0]
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs <= 2
    torch.compiler.reset()
    counters.clear()
    trained(RECORDS["AdamP"], inside=True, steps=5)
    assert counters["stats"]["unique_graphs"] == graphs


def test_fullgraph() -> None:
    """Our error is raised before anything is written."""
    model, opt, train_step = made(RECORDS["AdamP"])
    train_step(model, X, Y)
    torch.nn.functional.mse_loss(model(X), Y).backward()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(torch._dynamo.exc.Unsupported, match="call step outside of a region compiled with fullgraph"):
        torch.compile(opt.step, backend=BACKEND, fullgraph=True)()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_closure() -> None:
    """A step with a closure inside a compiled function."""
    ends = []
    for compiles in (False, True):
        model = toy.net()
        opt = RECORDS["AdamP"].make(model.parameters(), **RECORDS["AdamP"].typical)

        def closure(model: torch.nn.Module = model, opt: Any = opt) -> torch.Tensor:
            opt.zero_grad()
            loss = torch.nn.functional.mse_loss(model(X), Y)
            loss.backward()
            return loss

        def train_step(opt: Any = opt, closure: Any = closure) -> torch.Tensor:
            return opt.step(closure)

        run = torch.compile(train_step, backend=BACKEND) if compiles else train_step
        assert float(run().detach()) > float(run().detach())
        ends.append(model)
    assert_same_weights(*ends)


def test_in_backward() -> None:
    """The gradient hooks of a compiled model's parameters are called."""
    ends = []
    for compiles in (False, True):
        model = toy.net()
        step_in_backward(model.parameters(), lambda params: RECORDS["AdamP"].make(params, lr=1e-2))
        called = torch.compile(model, backend=BACKEND) if compiles else model
        for _ in range(3):
            torch.nn.functional.mse_loss(called(X), Y).backward()
        ends.append(model)
    assert_same_weights(*ends)


def test_clipping_inside() -> None:
    def trained_with(run: Any) -> torch.nn.Module:
        model = toy.net()
        opt = onepass.AdamP(model.parameters(), lr=1e-2, weight_decay=0.1)

        def train_step(x: torch.Tensor, y: torch.Tensor) -> None:
            loss = torch.nn.functional.mse_loss(model(x), y)
            opt.zero_grad()
            loss.backward()
            opt.clip_grad_norm_(0.1)
            opt.step()

        step = run(train_step)
        for _ in range(4):
            step(X, Y)
        return model

    got = trained_with(lambda f: torch.compile(f, backend=BACKEND))
    assert_same_weights(got, trained_with(lambda f: f))
    assert not [reason for reason in counters["graph_break"] if "pybind" in reason], counters["graph_break"]
