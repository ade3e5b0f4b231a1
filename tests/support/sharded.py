"""Sharded parameters beside the same parameters whole, stepped in the same process: for sharded_runs.py.

Parameters are made with the numbers of their elements, in order, before torch shards them, so that what a rank holds is told by the
elements themselves, and not by the code that is tested.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from compare import assert_same_bits
from records import Record
from tensors import gradient, values

Shapes = Sequence[tuple[int, ...]]

# Rows for four ranks and not, for one rank and none; a vector.
SHAPES: Shapes = [(8, 6), (5, 8), (2, 5), (9,), (1, 12)]
DIVISIBLE: Shapes = [(4, 8), (6, 3, 4, 2)[:2], (3, 4), (8, 12)]  # along dim 1, into two
GATES = ["channel", "none", "channel", "channel", "layer", "channel"]  # of the steps


class Shaped(nn.Module):
    """Linear layers of some shapes, and vectors, of which every element is its number."""

    def __init__(self, shapes: Shapes, dtype: torch.dtype):
        super().__init__()
        for i, shape in enumerate(shapes):
            count = torch.Size(shape).numel()
            weight = nn.Parameter(torch.arange(count, dtype=dtype).reshape(shape))
            assert count <= 257 or dtype != torch.bfloat16
            if len(shape) == 2:
                layer = nn.Linear(shape[1], shape[0], bias=False)
                layer.weight = weight
            else:
                layer = nn.Module()
                layer.weight = weight
            self.add_module(f"layer{i}", layer)

    @property
    def weights(self) -> list[Any]:
        return [layer.weight for layer in self.children()]


# ------------------------------------------------------------------ layouts


@cache
def mesh_of(*sizes: int, names: Sequence[str] = ("dp", "tp")) -> DeviceMesh:
    """Made once: each has process groups of its own, which take time to connect, and a file handle for each pair of ranks."""
    return init_device_mesh("cpu", sizes, mesh_dim_names=tuple(names[: len(sizes)]))


def fsdp(model: Shaped) -> None:
    fully_shard(model, mesh=mesh_of(4))


def fsdp_columns(model: Shaped) -> None:
    def place(p: nn.Parameter) -> Shard:
        return Shard(1) if p.dim() > 1 and p.shape[1] % 4 == 0 else Shard(0)

    fully_shard(model, mesh=mesh_of(4), shard_placement_fn=place)


def hsdp(model: Shaped) -> None:
    fully_shard(model, mesh=mesh_of(2, 2))


def tensor_parallel(mesh: DeviceMesh, model: Shaped) -> None:
    """Layers in turn by rows, by columns, and not at all."""
    styles = {0: ColwiseParallel(), 1: RowwiseParallel()}
    layers = [name for name, layer in model.named_children() if isinstance(layer, nn.Linear)]
    parallelize_module(model, mesh, {name: styles[i % 3] for i, name in enumerate(layers) if i % 3 < 2})


def tp(model: Shaped) -> None:
    tensor_parallel(mesh_of(4, names=("tp",)), model)


def fsdp_tp(model: Shaped) -> None:
    mesh = mesh_of(2, 2)
    tensor_parallel(mesh["tp"], model)
    fully_shard(model, mesh=mesh["dp"])


LAYOUTS: dict[str, Callable[[Shaped], None]] = {
    "fsdp": fsdp,
    "fsdp_columns": fsdp_columns,
    "hsdp": hsdp,
    "tp": tp,
    "fsdp_tp": fsdp_tp,
}


# ------------------------------------------------------------------ beside the whole


def local(t: Tensor) -> Tensor:
    return t._local_tensor if isinstance(t, DTensor) else t


def placed(part: Tensor, p: Tensor) -> Tensor:
    """A tensor of what a rank holds, on the mesh of `p`."""
    return DTensor(part, p._spec, requires_grad=False) if isinstance(p, DTensor) else part


class BesideWhole:
    """An optimizer of sharded parameters, and one of the same parameters whole."""

    def __init__(
        self, record: Record, layout: str, dtype: torch.dtype, backend: str, shapes: Shapes = SHAPES, **options: Any
    ):
        model = Shaped(shapes, torch.float32)
        LAYOUTS[layout](model)
        for module in model.modules():
            module.to(dtype)
        self.params = model.weights
        # Made before a bfloat16 would round the numbers.
        numbered = Shaped(shapes, torch.float32)
        LAYOUTS[layout](numbered)
        self.places = [local(p).detach().long() for p in numbered.weights]
        self.wholes = [nn.Parameter(values(shape, dtype, seed, scale=0.7)) for seed, shape in enumerate(shapes)]
        with torch.no_grad():
            for p, whole, place in zip(self.params, self.wholes, self.places, strict=True):
                local(p).copy_(whole.flatten()[place])
        arguments = {**record.typical, "backend": backend, **options}
        self.opt, self.whole = record.make(self.params, **arguments), record.make(self.wholes, **arguments)
        self.time, self.failures = 0, list[str]()

    def part(self, whole: Tensor, number: int) -> Tensor:
        """What this rank is to hold of a tensor like a parameter."""
        return whole.flatten()[self.places[number]]

    def give(self, gate: str) -> None:
        self.time += 1
        for number, (p, whole) in enumerate(zip(self.params, self.wholes, strict=True)):
            whole.grad = gradient(gate if whole.dim() > 1 else "none", whole.detach(), 10 * self.time + number)
            p.grad = placed(self.part(whole.grad, number).contiguous(), p)

    def step(self, gate: str) -> None:
        self.give(gate)
        self.whole.step()
        self.opt.step()
        self.compare()

    def finish(self) -> None:
        """Raises what differed. Not sooner: other ranks would wait for this one in the next step."""
        assert not self.failures, "\n".join(self.failures)

    def compare(self) -> None:
        try:
            self.compare_all()
        except AssertionError as error:
            self.failures.append(f"step {self.time}: {error}")

    def compare_all(self) -> None:
        """The same bits; or one last place under a gate with sums of several ranks, whose order is another, and where the whole was
        written under a wrong prediction and corrected, but a split row is written once. The sharded go on with the numbers of the
        whole then."""
        verdicts, wholes = self.opt.last_step(), self.whole.last_step()
        for number, (p, whole) in enumerate(zip(self.params, self.wholes, strict=True)):
            assert (p in verdicts) == (whole in wholes)
            if whole in wholes:
                assert verdicts[p].gate == wholes[whole].gate, (number, verdicts[p], wholes[whole])
                assert verdicts[p].corrected == wholes[whole].corrected or not isinstance(p, DTensor)
            gated = whole in wholes
            summed = gated and (
                wholes[whole].gate == "layer"
                or (self.is_split(p) and (wholes[whole].gate == "channel" or wholes[whole].corrected))
            )
            own, want = local(self.opt.master(p)), self.part(self.whole.master(whole), number)
            if self.compare_parts(own, want, summed, f"parameter {number}"):
                self.opt.set_master(p, self.whole.master(whole))
            for key, want in self.whole.state[whole].items():
                own = self.opt.state[p][key]
                if key in ("step", "gate_counter"):
                    assert own == want, (key, own, want)
                elif not key.endswith("_scale") and key != "master_param":
                    part = self.part(want, number)
                    if self.compare_parts(local(own), part, summed, f"{key} of parameter {number}"):
                        local(own).copy_(part)

    @staticmethod
    def is_split(p: Tensor) -> bool:
        return isinstance(p, DTensor) and any(placement.is_shard() and placement.dim > 0 for placement in p.placements)

    @staticmethod
    def compare_parts(own: Tensor, want: Tensor, summed: bool, what: str) -> bool:
        """Whether they differ, where they may."""
        if not summed or not own.is_floating_point():
            assert_same_bits(own, want, what)
            return False
        apart, eps = (own.double() - want.double()).abs(), torch.finfo(want.dtype).eps
        # Of a number near 0, of the update that led there.
        assert (apart <= 2 * eps * want.double().abs().clamp(min=0.05)).all(), f"{what} differs by {apart.max()}"
        return bool((apart > 0).any())


def same_on_all_ranks(x: Tensor) -> bool:
    every = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(every, x.contiguous())
    return all(torch.equal(each, x) for each in every)
