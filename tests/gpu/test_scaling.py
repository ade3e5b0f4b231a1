"""GradScaler and clipping on the device: the bits of unscaled steps, and no synchronization."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from compare import assert_same_bits
from drive import parameters, parameters_of
from gpu.drive_device import everything_on_host, feed, on_device, train
from gpu.graphs import Captured, no_synchronization
from gpu.target import BACKEND, DEVICE, cuda_only, to_host
from records import Record, each_optimizer

SCALE = 2.0**10


def make(record: Record, **changed: Any) -> Any:
    return record.make(on_device(), backend=BACKEND, **{**record.typical, **changed})


def scaler_of() -> torch.amp.GradScaler:
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=SCALE, growth_interval=1000)
    scaler.scale(torch.zeros((), device=DEVICE))  # creates the scale tensor
    return scaler


def feed_scaled(opt: Any, time: int, scale: float, overflow: bool = False) -> None:
    feed(opt, time)
    for p in parameters_of(opt):
        p.grad.mul_(scale)
    if overflow:
        parameters_of(opt)[0].grad[1, 2] = math.inf


def assert_same_parameters(one: Any, other: Any) -> None:
    for i, (p, q) in enumerate(zip(parameters_of(one), parameters_of(other), strict=True)):
        assert_same_bits(to_host(p), to_host(q), f"parameter {i}")


@each_optimizer
@pytest.mark.parametrize("clips", [False, True], ids=["", "clipped"])
def test_a_run_with_overflows(record: Record, clips: bool) -> None:
    opt, plain, scaler, scale = make(record), make(record), scaler_of(), SCALE
    for time in range(5):
        overflow = time in (0, 3)
        feed_scaled(opt, time, scale, overflow)
        if clips:
            scaler.unscale_(opt)
            opt.clip_grad_norm_(0.7)
        before = everything_on_host(opt)
        scaler.step(opt)
        scaler.update()
        if overflow:
            scale /= 2
            for name, tensor in everything_on_host(opt).items():
                if name in before:
                    assert_same_bits(tensor, before[name], name)
        else:
            feed(plain, time)
            if clips:
                plain.clip_grad_norm_(0.7)
            plain.step()
    assert_same_parameters(opt, plain)


@each_optimizer
def test_clipping_equals_torch(record: Record) -> None:
    ours = make(record)
    theirs = record.make(parameters(), backend="reference", **record.typical)
    for time in range(3):
        feed(ours, time)
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            q.grad = to_host(p.grad)
        got = ours.clip_grad_norm_(0.5)
        assert got.device == DEVICE
        torch.testing.assert_close(to_host(got), torch.nn.utils.clip_grad_norm_(parameters_of(theirs), 0.5))
        ours.step()
        theirs.step()
        for p, q in zip(parameters_of(ours), parameters_of(theirs), strict=True):
            torch.testing.assert_close(to_host(p), q.detach(), rtol=1e-5, atol=1e-6)


@each_optimizer
def test_a_captured_clipping(record: Record) -> None:
    """A replay computes norm, coefficient and step from its current gradients."""
    live = make(record, capturable=True, lr=torch.tensor(0.01, device=DEVICE))
    plain = make(record, lr=0.01)
    gradients: list[Tensor] = []
    for time in range(5):
        feed(plain, time)
        plain.clip_grad_norm_(0.5)
        if time < 2:
            train_clipped(live, time)
        if time == 2:
            feed(live, time)
            gradients = [p.grad for p in parameters_of(live)]

            def step() -> None:
                live.clip_grad_norm_(0.5)
                live.step()

            captured = Captured(step)
        if time >= 2:
            for g, p in zip(gradients, parameters_of(plain), strict=True):
                g.copy_(p.grad)
            captured.replay()
        plain.step()
        # The captured lr is a float32 tensor, so the last place of a step may differ.
        for p, q in zip(parameters_of(live), parameters_of(plain), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


def train_clipped(opt: Any, time: int) -> None:
    feed(opt, time)
    opt.clip_grad_norm_(0.5)
    opt.step()


@cuda_only
@each_optimizer
@pytest.mark.parametrize("clips", [False, True], ids=["", "clipped"])
def test_no_synchronization(record: Record, clips: bool) -> None:
    opt, scaler = train(make(record), range(2)), scaler_of()

    def step() -> None:
        if clips:
            scaler.unscale_(opt)
            opt.clip_grad_norm_(0.7)
        scaler.step(opt)
        scaler.update()

    for time in (2, 3):
        feed_scaled(opt, time, SCALE)
        step()
    feed_scaled(opt, 4, SCALE)
    with no_synchronization():
        for _ in range(3):
            step()
