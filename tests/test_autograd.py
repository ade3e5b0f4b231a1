"""Beside autograd: real gradients of real models, and tensors that are more than memory and strides."""

from __future__ import annotations

import pytest
import torch

from compare import assert_same_bits
from records import Record, each_backend, each_optimizer
from tensors import values


@each_backend
@each_optimizer
def test_a_model_learns(backend: str, record: Record) -> None:
    """A convolution in channels_last, a norm, a transposed weight: the loss goes down."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10)
    ).to(memory_format=torch.channels_last)
    model[4].weight = torch.nn.Parameter(model[4].weight.detach().T.contiguous().T)
    x = values((64, 1, 8, 8), torch.float32, 1).contiguous(memory_format=torch.channels_last)
    y = torch.arange(64) % 10
    arguments = {**record.typical, "lr": 0.01, "weight_decay": 1e-4}
    opt = record.make(model.parameters(), backend=backend, **arguments)
    losses = []
    for _ in range(30):
        opt.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        opt.step()
    assert losses[-1] < 0.7 * losses[0]
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[4].weight.stride() == (1, 10)


@each_backend
@each_optimizer
def test_a_second_backward_through_changed_weights_is_refused(backend: str, record: Record) -> None:
    """autograd knows by a tensor's version that a step has written to it."""
    w = values((4, 6), torch.float32, 1).requires_grad_()
    opt = record.make([w], backend=backend, **record.typical)
    for _ in range(2):
        loss = (w * w).sum()
        loss.backward(retain_graph=True)
        opt.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_backend
@each_optimizer
def test_gradients_that_are_negated_lazily(backend: str, record: Record) -> None:
    """torch keeps the sign of z.conj().imag as a bit of the tensor; its memory holds the opposite."""
    p, q = (values((6, 8), torch.float32, 1) for _ in range(2))
    opt, other = (record.make([t], backend=backend, **record.typical) for t in (p, q))
    for time in range(2):
        lazy = torch.complex(values(p.shape, p.dtype, time), values(p.shape, p.dtype, time + 9)).conj().imag
        assert lazy.is_neg()
        q.grad = lazy.resolve_neg()
        p.grad = q.grad.clone() if time == 0 else lazy
        opt.step()
        other.step()
    assert_same_bits(p, q, "parameter")


@each_backend
@each_optimizer
def test_gradients_that_have_a_graph(backend: str, record: Record) -> None:
    """backward(create_graph=True) leaves gradients that require gradients themselves."""
    ends = []
    for create_graph in (False, True):
        w = values((4, 6), torch.float32, 1).requires_grad_()
        opt = record.make([w], backend=backend, **record.typical)
        (w.grad,) = torch.autograd.grad((w**3).sum(), w, create_graph=create_graph)
        assert w.grad.requires_grad == create_graph
        opt.step()
        assert w.requires_grad
        ends.append(w)
    assert_same_bits(*ends, "parameter")


@each_backend
@each_optimizer
def test_inference_mode(backend: str, record: Record) -> None:
    """As in torch.optim, also on tensors that were made there."""
    with torch.inference_mode():
        p = values((6, 8), torch.float32, 1)
        ours = record.make([p], backend=backend, **record.typical)
        for time in range(2):
            p.grad = values(p.shape, p.dtype, time)
            ours.step()
    q = values((6, 8), torch.float32, 1)
    other = record.make([q], backend=backend, **record.typical)
    for time in range(2):
        q.grad = values(q.shape, q.dtype, time)
        other.step()
    assert_same_bits(p, q, "parameter")
