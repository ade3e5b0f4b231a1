"""Steps captured into a CUDA graph: a replay is a step with the current hyper-parameters and gradients.

On the emulation, which has no graphs, a replay calls `step` again.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from compare import assert_same_bits
from drive import gradient_at, parameters, parameters_of
from gpu.drive_device import SHAPES, assert_same_everywhere, feed, on_device
from gpu.graphs import Captured
from gpu.target import BACKEND, DEVICE, ON_CUDA, cuda_only, synchronize, to_host
from records import RECORDS, Record, each_optimizer, each_projected
from tensors import values


def live(number: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(number, dtype=dtype, device=DEVICE)


def live_arguments(record: Record, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The typical arguments, with device tensors for all hyper-parameters that may be tensors."""
    given = {"betas": (0.9, 0.999), **record.typical} if record.name.startswith("Adam") else dict(record.typical)
    for name in ("lr", "weight_decay", "momentum"):
        if name in given:
            given[name] = live(given[name], dtype)
    if "betas" in given:
        given["betas"] = tuple(live(beta, dtype) for beta in given["betas"])
    return {**given, "capturable": True}


def set_hypers(opt: Any, time: int) -> None:
    """Writes new values for each `time` into existing tensors, or replaces numbers.

    They are exact in float32, so that the reference, which gets numbers, gets the same values.
    """
    values = {
        "lr": (8 - time) / 512,
        "weight_decay": 0.25 + time / 8,
        "momentum": 0.5 + time / 16,
        "betas": (0.75 + time / 32, 0.875 + time / 64),
    }
    for group in opt.param_groups:
        for name in values.keys() & group.keys():
            new, old = values[name], group[name]
            if isinstance(old, Tensor):
                old.fill_(new)
            elif isinstance(old, tuple) and isinstance(old[0], Tensor):
                for tensor, number in zip(old, new, strict=True):
                    tensor.fill_(number)
            else:
                group[name] = new


def put_gradients(opt: Any, models: list[Tensor], time: int) -> None:
    """Writes new values into the captured gradients."""
    for p, q in zip(parameters_of(opt), models, strict=True):
        new = gradient_at(q.detach(), time)
        if p.grad is None:
            p.grad = new.to(DEVICE, copy=True)
        else:
            p.grad.copy_(new)


@each_optimizer
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float32, False), (torch.float32, True), (torch.bfloat16, False), (torch.float64, True)],
    ids=["float32", "float32-doubles", "bfloat16", "float64-doubles"],
)
def test_replays_are_steps(record: Record, dtype: torch.dtype, wide: bool) -> None:
    """Replays with changed lr, weight decay, betas and momentum have the bits of eager steps and of the reference."""
    of = torch.float64 if wide else torch.float32
    replayed, eager = (record.make(on_device(dtype), backend=BACKEND, **live_arguments(record, of)) for _ in range(2))
    models = parameters(dtype)
    reference = record.make(models, backend="reference", **record.typical)
    graph = None
    for time in range(5):
        for opt in (replayed, eager, reference):
            set_hypers(opt, time)
        for opt in (replayed, eager):
            put_gradients(opt, models, time)
        for q in models:
            q.grad = gradient_at(q.detach(), time)
        if time == 0:
            replayed.step()
            graph = Captured(replayed.step)
        else:
            graph.replay()
        eager.step()
        reference.step()
        assert_same_everywhere(replayed, eager)
        _compare_with_reference(record, replayed, reference)
        for opt in (replayed, eager):  # so that all continue from the same numbers
            _assign(opt, models)


@torch.no_grad()
def _assign(opt: Any, models: list[Tensor]) -> None:
    for p, q in zip(parameters_of(opt), models, strict=True):
        p.copy_(q)


def _compare_with_reference(record: Record, opt: Any, reference: Any) -> None:
    for i, (p, q) in enumerate(zip(parameters_of(opt), parameters_of(reference), strict=True)):
        # The device's pow may be off by one ulp, visible only in float64; the sums of a projected row differ in order.
        if p.dtype != torch.float64 and not (record.projected and p.dim() > 1):
            assert_same_bits(to_host(p), q.detach(), f"parameter {i}")
        loose = {torch.float64: 1e-10, torch.float32: 1e-5}.get(p.dtype, 2**-7)
        torch.testing.assert_close(to_host(p), q.detach(), rtol=loose, atol=loose / 10)
    for p, verdict in opt.last_step().items():
        q = parameters_of(reference)[next(i for i, x in enumerate(parameters_of(opt)) if x is p)]
        assert verdict.gate == reference.last_step()[q].gate


@pytest.mark.parametrize("name", ["AdamW", "AdamP", "SGDP"])
@pytest.mark.parametrize("scheduler", ["cosine", "one cycle"])
def test_schedulers_write_into_the_tensor(name: str, scheduler: str) -> None:
    record = RECORDS[name]

    def make(opt: Any) -> Any:
        if scheduler == "cosine":
            return CosineAnnealingLR(opt, T_max=8)
        return OneCycleLR(opt, max_lr=0.05, total_steps=10, cycle_momentum=False)

    arguments = {**record.typical, "capturable": True}
    opts = [record.make(on_device(), backend=BACKEND, **{**arguments, "lr": live(0.02)}) for _ in range(2)]
    replayed, eager = opts
    schedulers, rates = [make(opt) for opt in opts], set()
    tensor, graph = replayed.param_groups[0]["lr"], None
    for time in range(6):
        rates.add(float(tensor))
        for opt in opts:
            put_gradients(opt, [to_host(p) for p in parameters_of(eager)], time)
        if graph is None:
            replayed.step()
            graph = Captured(replayed.step)
        else:
            graph.replay()
        eager.step()
        for each in schedulers:
            each.step()
        assert replayed.param_groups[0]["lr"] is tensor
        assert_same_everywhere(replayed, eager)
    assert len(rates) == 6


@each_optimizer
@pytest.mark.parametrize("count", [5, 1100], ids=["few", "many"])
def test_eager_steps_between_replays(record: Record, count: int) -> None:
    """Eager steps with other gradients before and between replays: the graph uses those that it captured."""
    if not ON_CUDA and count > 5:
        count = 60
    starts = [values((3, 5) if i % 2 else (7,), torch.float32, i) for i in range(count)]
    opts = [
        record.make([s.to(DEVICE, copy=True) for s in starts], backend=BACKEND, **live_arguments(record))
        for _ in range(2)
    ]
    replayed, eager = opts
    sets = [[torch.sin(s + time).to(DEVICE) for s in starts] for time in range(4)]

    def give(opt: Any, time: int) -> None:
        for p, g in zip(parameters_of(opt), sets[time], strict=True):
            p.grad = g

    for opt in opts:
        give(opt, 0)
        opt.step()
    graph = Captured(replayed.step)
    for time in (1, 0, 2, 0, 0, 3, 0):
        give(eager, time)
        eager.step()
        give(replayed, time)
        if time:
            replayed.step()
        else:
            graph.replay()
        if count == 5:
            assert_same_everywhere(replayed, eager)
    assert_same_everywhere(replayed, eager)


@cuda_only
@each_optimizer
@pytest.mark.parametrize("variant", [0, 2])
def test_discarded_capture(record: Record, variant: int) -> None:
    """The host does not rely on writes of a discarded graph."""
    arguments = {**list(record.variants.values())[variant], "capturable": True}
    opt, other = (record.make(on_device(), backend=BACKEND, **arguments) for _ in range(2))
    for each in (opt, other):
        feed(each, 0)
        each.step()
    graph = torch.cuda.CUDAGraph()
    with contextlib.suppress(KeyError), torch.cuda.graph(graph):
        opt.step()
        raise KeyError
    del graph
    synchronize()
    for time in range(1, 4):
        for each in (opt, other):
            feed(each, time)
            each.step()
        assert_same_everywhere(opt, other)


@cuda_only
@each_optimizer
def test_capture_without_capturable(record: Record) -> None:
    """The step raises an error and writes nothing, and the capture continues."""
    opt, other = (record.make(on_device(), backend=BACKEND, **record.typical) for _ in range(2))
    for each in (opt, other):
        feed(each, 0)
        each.step()
    feed(opt, 1)
    x, graph = torch.zeros(1, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(RuntimeError, match="capturable=True"):
            opt.step()
        x.add_(1)
    graph.replay()
    assert float(x) == 1
    assert_same_everywhere(opt, other)
    feed(other, 1)
    for each in (opt, other):
        each.step()
    assert_same_everywhere(opt, other)


@cuda_only
@each_optimizer
def test_the_first_step_is_not_captured(record: Record) -> None:
    opt, other = (record.make(on_device(), backend=BACKEND, **live_arguments(record)) for _ in range(2))
    feed(opt, 0)
    x, graph = torch.zeros(1, device=DEVICE), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        with pytest.raises(RuntimeError, match="take a step before the capture"):
            opt.step()
        x.add_(1)
    assert all(not own for own in opt.state.values())
    feed(other, 0)
    for each in (opt, other):
        each.step()
    assert_same_everywhere(opt, other)


@cuda_only
@each_projected
def test_last_step_after_a_replay(record: Record) -> None:
    """Gate statistics are those of the replay, not of the capture."""
    opt = record.make(on_device(shapes=SHAPES), backend=BACKEND, **live_arguments(record))
    models = [to_host(p) for p in parameters_of(opt)]
    put_gradients(opt, models, 0)  # gate none
    opt.step()
    graph = Captured(opt.step)
    put_gradients(opt, [to_host(p) for p in parameters_of(opt)], 1)  # gate channel
    graph.replay()
    gates = {p.shape: verdict.gate for p, verdict in opt.last_step().items()}
    assert gates[torch.Size((6, 20))] == gates[torch.Size((20, 150))] == "channel"


@cuda_only
def test_a_whole_training_step() -> None:
    """Forward, backward and step in one graph, as in torch's notes on CUDA graphs."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 4)).to(DEVICE)
    models = [model, copy.deepcopy(model)]
    record = RECORDS["AdamP"]
    opts = [
        record.make(model.parameters(), backend=BACKEND, capturable=True, lr=live(1e-2), weight_decay=1e-2)
        for model in models
    ]
    x, y = torch.randn(32, 16, device=DEVICE), torch.randn(32, 4, device=DEVICE)

    def loss_of(model: Any) -> Tensor:
        return (model(x) - y).square().mean()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            opts[0].zero_grad(set_to_none=True)
            loss_of(models[0]).backward()
            opts[0].step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    opts[0].zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = loss_of(models[0])
        loss.backward()
        opts[0].step()
    replayed, eager = [], []
    for _ in range(3):
        opts[1].zero_grad(set_to_none=True)
        loss_of(models[1]).backward()
        opts[1].step()
    for number in range(20):
        for opt in opts:
            opt.param_groups[0]["lr"].fill_(1e-2 / (1 + number))
        graph.replay()
        replayed.append(float(loss))
        opts[1].zero_grad(set_to_none=True)
        eager_loss = loss_of(models[1])
        eager_loss.backward()
        opts[1].step()
        eager.append(float(eager_loss))
    assert replayed == pytest.approx(eager, rel=1e-3)
    assert replayed[-1] < replayed[0]
