"""Capture and replay of steps of the Triton backend, in the interpreter (graphs_of_triton.py). tests/gpu uses real graphs."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import gradient_at, parameters, parameters_of, train
from graphs_of_triton import Graph
from onepass.backend.triton import graph_tables
from records import RECORDS, Record, each_optimizer
from tensors import values

SHAPES = [(6, 20), (13,)]


def make(record: Record, **arguments: Any) -> Any:
    return record.make(
        parameters(shapes=SHAPES), backend="triton", **{**record.typical, "capturable": True, **arguments}
    )


def pair(record: Record) -> Iterator[Any]:
    """Two optimizers after the same two steps: all state is made and no buffer is unstepped."""
    return (train(make(record), range(2)) for _ in range(2))


def give(opt: Any, gradients: list[Tensor]) -> None:
    for p, g in zip(parameters_of(opt), gradients, strict=True):
        p.grad = g


def gradients(opt: Any, time: int) -> list[Tensor]:
    return [gradient_at(p.detach(), time) for p in parameters_of(opt)]


def assert_same_numbers(got: Any, want: Any) -> None:
    for p, q in zip(parameters_of(got), parameters_of(want), strict=True):
        assert_same_bits(p, q, "parameter")
        for key, value in want.state[q].items():
            assert_same_bits(got.state[p][key], value, key)


@each_optimizer
def test_replays(record: Record) -> None:
    """Each replay is a step, with new gradients and a new lr."""
    opt, other = (train(make(record, lr=torch.tensor(0.25)), range(2)) for _ in range(2))
    before = Snapshot(opt)
    graph = Graph(opt.step)
    before.assert_unchanged()
    for time in range(2, 5):
        for each in (opt, other):
            each.param_groups[0]["lr"].fill_(2.0**-time)
            for p, g in zip(parameters_of(each), gradients(each, time), strict=True):
                p.grad.copy_(g)
        graph.replay()
        other.step()
        assert_same_state(opt, other)
        assert repr(list(opt.last_step().values())) == repr(list(other.last_step().values()))


def test_successive_captures() -> None:
    """Each capture has gradients of its own, without a step in between."""
    opt, other = pair(RECORDS["AdamP"])
    sets = [gradients(opt, time) for time in range(3)]
    graphs = []
    for own in sets:
        give(opt, own)
        graphs.append(Graph(opt.step))
    for i in (1, 0, 2, 0):
        graphs[i].replay()
        give(other, sets[i])
        other.step()
        assert_same_numbers(opt, other)


@pytest.mark.parametrize("new", [False, True], ids=["the same gradients", "new gradients"])
def test_step_after_a_capture_without_replay(new: bool) -> None:
    """A step after a capture does not rely on uploads in the graph, which has not been replayed."""
    opt, other = pair(RECORDS["AdamP"])
    if new:
        kept = gradients(opt, 2)
        give(opt, kept)
        give(other, [g.clone() for g in kept])
    Graph(opt.step)
    for each in (opt, other):
        each.step()
    assert_same_state(opt, other)


def test_a_graph_outlives_its_plan() -> None:
    """The graph keeps the tables that it reads, though a new group replaces all tables."""
    opt, other = pair(RECORDS["AdamP"])
    own, new = ([g.clone() for g in gradients(opt, 2)] for _ in range(2))
    give(opt, own)
    graph = Graph(opt.step)
    for each in (opt, other):
        each.add_param_group({"params": [values((5,), torch.float32, 9)]})
        give(each, [*new, torch.ones(5)])
        each.step()
    gc.collect()
    graph.replay()
    give(other, [*own, None])
    other.step()
    assert_same_numbers(opt, other)


def test_a_graph_keeps_the_tensors_of_its_kernels() -> None:
    """The graph keeps the buffers of strided tensors and the host's hyper-parameters, which kernels reach by address."""
    opt = onepass.AdamP([torch.ones(6, 8).T], backend="triton", capturable=True)
    train(opt, range(2))
    (entry,) = opt._execution.backends[0].bound
    assert entry.buffers
    read = [weakref.ref(t) for t in (*entry.buffers.values(), opt._execution.backends[0].tables.scalars.numbers)]
    Graph(opt.step)
    del entry
    opt._execution.forget()
    opt._execution.stepped = []  # kept for last_step
    gc.collect()
    assert all(t() is not None for t in read)


def test_limit_of_captures_between_steps() -> None:
    """Spare tables limit the captures between two steps. A refused capture changes nothing, and later steps are right."""
    opt, other = pair(RECORDS["AdamW"])
    for _ in range(graph_tables.CAPTURES):
        Graph(opt.step)
    give(opt, gradients(opt, 2))
    before = Snapshot(opt)
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        Graph(opt.step)
    before.assert_unchanged()
    give(other, gradients(other, 2))
    opt.step()
    other.step()
    assert_same_state(opt, other)
    Graph(opt.step)


@each_optimizer
def test_the_first_step_is_not_captured(record: Record) -> None:
    opt = make(record)
    give(opt, gradients(opt, 0))
    with pytest.raises(RuntimeError, match="take a step before the capture"):
        Graph(opt.step)
    assert all(not own for own in opt.state.values())


@each_optimizer
def test_capture_without_capturable_is_refused(record: Record) -> None:
    opt = train(make(record, capturable=False), range(2))
    before = Snapshot(opt)
    with pytest.raises(RuntimeError, match="param group 0 has capturable=False"):
        Graph(opt.step)
    before.assert_unchanged()
