"""DTensors on a group of one rank, with the collectives that it would not need: gates and weights of plain tensors, no wait, and
captured steps. What several ranks do is tested on CPUs (tests/frameworks/test_sharded.py)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from gpu.graphs import Captured, no_synchronization
from gpu.target import BACKEND, DEVICE, ON_CUDA, to_host
from onepass import sharding
from records import RECORDS, Record, each_projected
from tensors import gradient, values

SHAPES = [(6, 20), (2, 1500), (9,), (64, 64)]
GATES = ["channel", "none", "channel", "layer", "channel"]
each_placement = pytest.mark.parametrize("placement", [Shard(0), Shard(1)], ids=["rows", "columns"])


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("nccl" if ON_CUDA else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh(DEVICE.type, (1,))
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def exchange_with_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FEWEST", 1)


class Pair:
    """An optimizer of DTensors, and one of plain tensors."""

    def __init__(self, record: Record, mesh: DeviceMesh, placement: Shard, **options: Any):
        numbers = [values(shape, torch.float32, seed, scale=0.7).to(DEVICE) for seed, shape in enumerate(SHAPES)]
        self.plain: list[Any] = [nn.Parameter(x.clone()) for x in numbers]
        self.sharded: list[Any] = [
            nn.Parameter(distribute_tensor(x.clone(), mesh, [placement if x.dim() > 1 else Shard(0)])) for x in numbers
        ]
        arguments = {**record.typical, "backend": BACKEND, **options}
        self.opts = [record.make(params, **arguments) for params in (self.sharded, self.plain)]
        for p in (*self.sharded, *self.plain):
            p.grad = torch.zeros_like(p)

    def give(self, gate: str, time: int) -> None:
        """In place, as a graph would read them; those of the DTensors do not begin at a multiple of 16 bytes."""
        for number, (p, q) in enumerate(zip(self.sharded, self.plain, strict=True)):
            g = gradient(gate if q.dim() > 1 else "none", to_host(q), 10 * time + number).to(DEVICE)
            q.grad.copy_(g)
            if p.grad._local_tensor.data_ptr() % 16 == 0:
                part = torch.zeros(g.numel() + 1, device=DEVICE)[1:].view_as(g)
                p.grad = DTensor(part, p._spec, requires_grad=False)
            p.grad._local_tensor.copy_(g)

    def compare(self) -> None:
        verdicts = [[verdict.gate for verdict in opt.last_step().values()] for opt in self.opts]
        assert verdicts[0] == verdicts[1]
        for p, q in zip(self.sharded, self.plain, strict=True):
            own, want = to_host(p._local_tensor), to_host(q)
            torch.testing.assert_close(own, want, rtol=1e-6, atol=1e-7)
            with torch.no_grad():
                p._local_tensor.copy_(q)


@each_projected
@each_placement
def test_steps(mesh: DeviceMesh, record: Record, placement: Shard) -> None:
    pair = Pair(record, mesh, placement)
    for time, gate in enumerate(GATES):
        pair.give(gate, time)
        for opt in pair.opts:
            opt.step()
        pair.compare()


@each_placement
def test_norms(mesh: DeviceMesh, placement: Shard) -> None:
    pair = Pair(RECORDS["AdamP"], mesh, placement)
    pair.give("none", 0)
    norms: list[Tensor] = [opt.clip_grad_norm_(0.5) for opt in pair.opts]
    torch.testing.assert_close(*norms, rtol=1e-6, atol=0)
    for opt in pair.opts:
        opt.step()
    pair.compare()


@each_placement
def test_replays(mesh: DeviceMesh, placement: Shard) -> None:
    """The collectives are in the graph."""
    pair = Pair(RECORDS["AdamP"], mesh, placement, capturable=True)
    for time, gate in enumerate(GATES[:2]):
        pair.give(gate, time)
        for opt in pair.opts:
            opt.step()
    captured = Captured(pair.opts[0].step)
    for time, gate in enumerate(GATES, 2):
        pair.give(gate, time)
        captured.replay()
        pair.opts[1].step()
        pair.compare()


@each_placement
def test_no_wait(mesh: DeviceMesh, placement: Shard) -> None:
    pair = Pair(RECORDS["AdamP"], mesh, placement)
    for time in range(3):
        pair.give("channel", time)
        with no_synchronization() if ON_CUDA and time == 2 else contextlib.nullcontext():
            pair.opts[0].step()
