"""Interaction with autograd: gradients of models, version counters, lazily negated gradients, inference tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits
from drive import feed, parameters, parameters_of, train
from records import Record, each_backend, each_optimizer
from tensors import values


@each_backend
@each_optimizer
def test_model_trains(backend: str, record: Record) -> None:
    """A convolution in channels_last, a norm, a transposed weight: the loss falls, and the layouts stay."""
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
def test_backward_through_stepped_weights_raises(backend: str, record: Record) -> None:
    """autograd detects the step's writes by the version of the tensor."""
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
def test_versions_of_written_tensors(backend: str, record: Record) -> None:
    """A step raises the versions of the tensors that it steps, by which autograd detects writes, and of no other tensor."""
    base = values((8, 6), torch.float32, 1)
    stepped = [values((4, 6), torch.float32, 2), values((3,), torch.bfloat16, 3), base[2:6]]
    left = [values((4, 6), torch.float32, 4), values((0, 6), torch.float32, 5)]
    opt = record.make([*stepped, *left], backend=backend, **record.typical)

    def versions(tensors: list[Tensor]) -> list[int]:
        return [t._version for t in tensors]

    def moved(call: Callable[[], Any]) -> list[bool]:
        """Whether `call` raises the version of each stepped tensor; it must raise no other version."""
        before, others = versions(stepped), versions(left)
        gradients = [p.grad for p in stepped]
        kept = [(versions([g])[0], g.clone()) for g in gradients]
        call()
        assert versions(left) == others
        for p, g, (version, bits) in zip(stepped, gradients, kept, strict=True):
            assert p.grad is g and g._version == version
            assert_same_bits(g, bits, "gradient")
        return [now > then for now, then in zip(versions(stepped), before, strict=True)]

    def refused() -> None:
        with pytest.raises(ValueError, match="expanded"):
            opt.step()

    for time in range(3):
        for p in stepped:
            p.grad = values(p.shape, p.dtype, time)
        assert moved(lambda: opt.clip_grad_norm_(0.5)) == [False] * 3
        whole = base._version
        assert moved(opt.step) == [True] * 3
        assert base._version > whole
        stepped[0].grad = torch.ones(6).expand(4, 6)
        assert moved(refused) == [False] * 3


@each_backend
@each_optimizer
def test_backward_through_unwritten_weights(backend: str, record: Record) -> None:
    """Through a weight without a gradient, after a step of others; through all, after a clipping or a rejected step."""
    w, frozen = (values((4, 6), torch.float32, i).requires_grad_() for i in range(2))
    opt = record.make([w, frozen], backend=backend, **record.typical)
    for _ in range(2):
        loss, other = (w * w).sum(), (frozen * frozen).sum()
        loss.backward(retain_graph=True)
        opt.clip_grad_norm_(1.0)
        loss.backward(retain_graph=True)
        opt.zero_grad()
        w.grad = torch.ones(6).expand(4, 6)
        with pytest.raises(ValueError, match="expanded"):
            opt.step()
        w.grad = None
        loss.backward()
        opt.step()
        other.backward()
        opt.zero_grad()
        assert all(p.requires_grad and p.is_leaf for p in (w, frozen))


@each_backend
@each_optimizer
def test_gradients_are_freed(backend: str, record: Record) -> None:
    """Nothing keeps a replaced gradient alive after a plain, a clipped, a skipped or a rejected step."""
    groups = [{"params": parameters()}, {"params": [values((4, 6), torch.float32, 1)]}]
    opt = record.make(groups, backend=backend, **record.typical)

    def alive_after(call: Callable[[], Any]) -> int:
        feed(opt, 0)
        call()
        kept = [weakref.ref(p.grad) for p in parameters_of(opt)]
        opt.zero_grad()
        return sum([gradient() is not None for gradient in kept])

    def clip() -> None:
        opt.clip_grad_norm_(0.5)

    def clip_and_step() -> None:
        clip()
        opt.step()

    def skip() -> None:
        opt.found_inf = torch.tensor(1.0)
        opt.step()
        del opt.found_inf

    def refuse() -> None:
        groups[1]["params"][0].grad = torch.ones(6).expand(4, 6)
        with pytest.raises(ValueError, match="expanded"):
            opt.step()

    calls = [opt.step, clip, clip_and_step, skip, refuse, opt.step, skip, refuse, clip]
    assert [(call.__name__, alive_after(call)) for call in calls] == [(call.__name__, 0) for call in calls]


@each_backend
@each_optimizer
def test_lazily_negated_gradients(backend: str, record: Record) -> None:
    """torch stores the sign of z.conj().imag as a flag of the tensor; its memory has the opposite sign."""
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
def test_gradients_with_a_graph(backend: str, record: Record) -> None:
    """backward(create_graph=True) leaves gradients that require gradients."""
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
    """As in torch.optim, also on inference tensors."""
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


@each_backend
@each_optimizer
def test_first_step_in_inference_mode(backend: str, record: Record) -> None:
    """State made in inference mode can be written outside of it, with the bits of a run without."""
    opt, other = (record.make(parameters(), backend=backend, **record.typical) for _ in range(2))
    with torch.inference_mode():
        train(opt, [0])
    train(opt, [1])
    train(other, range(2))
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        assert_same_bits(p, q, "parameter")


@each_backend
def test_inference_parameter_is_rejected(backend: str) -> None:
    """torch raises on writes to it outside of inference mode, on some backends only after other parameters were stepped."""
    with torch.inference_mode():
        q = torch.ones(3)
    p = torch.ones(3)
    with pytest.raises(ValueError, match=r"parameter 1 of group 0.*made in inference mode.*p\.clone\(\)"):
        onepass.AdamW([p, q], backend=backend)
