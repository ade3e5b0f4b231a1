"""Runs on four processes with sharded parameters, for test_sharded.py."""

from __future__ import annotations

import copy
import datetime
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

from processes import Result, run_all

WORLD = 4
F32, BF16 = torch.float32, torch.bfloat16
BLOCK_SHAPES = [(16, 1024), (9, 1024), (4, 2048), (65536,), (5001,), (5, 6)]
# By name: record, dtype, arguments.
VARIANTS: dict[str, tuple[str, torch.dtype, dict[str, Any]]] = {
    "AdamP": ("AdamP", F32, {}),
    "AdamP proximal nesterov": ("AdamP", F32, dict(decay="proximal", nesterov=True)),
    "AdamP not speculating": ("AdamP", F32, dict(speculate=False, maximize=True)),
    "AdamP fixed": ("AdamP", F32, dict(projection="layer")),
    "AdamP float64": ("AdamP", torch.float64, {}),
    "AdamP bfloat16": ("AdamP", BF16, {}),
    "AdamP exact": ("AdamP", BF16, dict(master_weights=True)),
    "AdamP exact short": ("AdamP", BF16, dict(master_weights=True, state_dtype=BF16)),
    "AdamP stochastic": ("AdamP", BF16, dict(stochastic_rounding=True, state_dtype=BF16, seed=1 << 40)),
    "AdamP blocks": ("AdamP", F32, dict(state_dtype="8bit")),
    "AdamW stochastic blocks": ("AdamW", BF16, dict(stochastic_rounding=True, state_dtype="8bit", seed=5)),
    "AdamW short": ("AdamW", F32, dict(state_dtype=BF16)),
    "SGDP": ("SGDP", F32, {}),
    "SGDP l2 nesterov": ("SGDP", F32, dict(nesterov=True, weight_decay=0.0)),
    "SGDP buffer": ("SGDP", F32, dict(project_momentum=True, nesterov=False)),
    **{name: (name, F32, {}) for name in ("Adam", "AdamW", "AdamProx", "AdamProxL2", "SGD")},
}
NAMES = ["cpu", "reference", "emulated", "triton"]
PLACES = ["fsdp", "fsdp_columns", "hsdp", "tp", "fsdp_tp"]


def pairs() -> Iterator[tuple[str, str, str]]:
    """Each variant with two layouts on the CPU, and with one on every other backend; each layout with AdamP on every backend."""
    for number, variant in enumerate(VARIANTS):
        yield "cpu", PLACES[number % 5], variant
        yield "cpu", PLACES[(number + 2) % 5], variant
        for shift, backend in enumerate(NAMES[1:], 1):
            yield backend, PLACES[(number + shift) % 5], variant
    for backend in NAMES:
        for place in PLACES:
            yield backend, place, "AdamP"


def beside(backend: str, place: str, variant: str) -> Result:
    name, dtype, options = VARIANTS[variant]
    shapes = sharded.SHAPES if place in ("fsdp", "hsdp") else sharded.DIVISIBLE
    run = sharded.BesideWhole(
        RECORDS[name], place, dtype, backend, BLOCK_SHAPES if "blocks" in variant else shapes, **options
    )
    gates = []
    for gate in sharded.GATES:
        run.step(gate)
        gates.append([verdict.gate for verdict in run.whole.last_step().values()])
    run.finish()
    return {"gates": gates}


# ------------------------------------------------------------------ collectives


class Counted:
    """Counts the collectives of a block, and the bytes that this rank sends."""

    def __enter__(self) -> Counted:
        self.calls: list[tuple[str, int]] = []
        self.kept = {name: getattr(dist, name) for name in ("all_gather_single", "all_reduce")}

        def counted(name: str) -> Callable[..., Any]:
            def call(*tensors: Tensor, **more: Any) -> Any:
                self.calls.append((name, tensors[-1].nbytes))
                return self.kept[name](*tensors, **more)

            return call

        for name in self.kept:
            setattr(dist, name, counted(name))
        return self

    def __exit__(self, *_: Any) -> None:
        for name, function in self.kept.items():
            setattr(dist, name, function)


def collectives(name: str, place: str) -> Result:
    """Of steps with every gate, whatever is predicted; and without some gradients."""
    shapes = sharded.SHAPES if place in ("fsdp", "hsdp") else sharded.DIVISIBLE
    run = sharded.BesideWhole(RECORDS[name], place, F32, "cpu", shapes)
    counts = []
    for number, gate in enumerate(sharded.GATES):
        run.give(gate)
        if number == 3:
            run.params[number % 2].grad = None
        with Counted() as counted:
            run.opt.step()
        counts.append(counted.calls)
    return {"calls": counts, "tensors": sum(p.dim() > 1 for p in run.params)}


# ------------------------------------------------------------------ what closes the gate, who takes part


def not_a_number(place: str, value: float, most: int) -> Result:
    """A row of one rank in turn has it. most: ranks whose statistics are gathered."""
    from onepass import exchange

    kept, exchange.MOST_GATHERED = exchange.MOST_GATHERED, most
    gates, cosines = [], []
    try:
        for rank in range(WORLD):
            run = sharded.BesideWhole(RECORDS["AdamP"], place, F32, "cpu", [(8, 8), (8, 16)])
            for _ in range(3):
                run.give("channel")
                run.opt.step()
            run.give("channel")
            for p in run.params:
                if dist.get_rank() == rank and len(sharded.local(p.grad)):
                    sharded.local(p.grad)[-1, -1] = value
            run.opt.step()
            gates.append([verdict.gate for verdict in run.opt.last_step().values()])
            cosines.append([verdict.cosine for verdict in run.opt.last_step().values()])
    finally:
        exchange.MOST_GATHERED = kept
    return {"gates": gates, "cosines": cosines}


def many_ranks(place: str) -> Result:
    """With one sum of the library in place of a gather, as beyond 64 ranks: the same gates and counters."""
    from onepass import exchange

    kept, exchange.MOST_GATHERED = exchange.MOST_GATHERED, 1
    try:
        return beside("cpu", place, "AdamP")
    finally:
        exchange.MOST_GATHERED = kept


def near_the_threshold(backend: str) -> Result:
    """Rows whose cosine is a little below and above delta/sqrt(row length), of the whole rows."""
    run = sharded.BesideWhole(RECORDS["AdamP"], "fsdp_columns", F32, backend, [(8, 8), (8, 16)])
    gates = []
    for factor in (0.9, 1.3):
        for number, (p, whole) in enumerate(zip(run.params, run.wholes, strict=True)):
            x = whole.detach().double()
            along = x / x.norm(dim=1, keepdim=True)
            across = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            across -= (across * along).sum(1, keepdim=True) * along
            across /= across.norm(dim=1, keepdim=True)
            cosine = factor * run.opt.param_groups[0]["delta"] / x.size(1) ** 0.5
            whole.grad = ((1 - cosine**2) ** 0.5 * across + cosine * along).float()
            p.grad = sharded.placed(run.part(whole.grad, number).contiguous(), p)
        for opt in (run.opt, run.whole):
            opt.step()
        gates.append(
            [[verdict.gate == "channel" for verdict in opt.last_step().values()] for opt in (run.opt, run.whole)]
        )
    return {"gates": gates}


def uneven_ranks(backend: str) -> Result:
    """Ranks differ in counters and in which gradients are there; one has no rows of any tensor: they take the same gates, and no rank
    waits for ever."""
    run = sharded.BesideWhole(RECORDS["AdamP"], "fsdp", F32, backend, [(3, 8), (2, 6)])
    gates = []
    for time, gate in enumerate(("channel", "channel", "none", "channel")):
        run.give(gate)
        if time == 1 and dist.get_rank() == 0:
            run.params[1].grad = None
        run.opt.step()
        if time == 0:
            for p in run.params:
                run.opt.state[p]["gate_counter"].fill_(dist.get_rank())
        gates.append([verdict.gate for verdict in run.opt.last_step().values()])
    return {"gates": gates}


def empty_ranks() -> Result:
    """Ranks without any row take part in every exchange. With a short timeout, as a rank that did not would be waited for."""
    params = [nn.Parameter(distribute_tensor(torch.ones(2, 4), mesh_with_a_timeout(), [Shard(0)], src_data_rank=None))]
    opt = onepass.AdamP(params, lr=0.1)
    for _ in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        opt.step()
    return {"gates": [verdict.gate for verdict in opt.last_step().values()]}


def mesh_with_a_timeout() -> DeviceMesh:
    return DeviceMesh.from_group(dist.new_group(timeout=datetime.timedelta(seconds=3)), "cpu", mesh_dim_names=("dp",))


# ------------------------------------------------------------------ gradients


def placed_otherwise(backend: str) -> Result:
    """A row-wise embedding's gradient is replicated, and that of a norm under sequence parallelism is a Partial sum."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.norm, self.linear = nn.Embedding(16, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(self.norm(self.embedding(x)))

    torch.manual_seed(0)
    whole = Net()
    net = copy.deepcopy(whole)
    mesh = sharded.mesh_of(4, names=("tp",))
    parallelize_module(
        net, mesh,
        {"embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)), "norm": SequenceParallel(),
         "linear": ColwiseParallel(input_layouts=Shard(1), output_layouts=Replicate())},
    )  # fmt: skip
    opts = [onepass.AdamP(each.parameters(), lr=0.05, backend=backend) for each in (net, whole)]
    x = torch.arange(16).reshape(2, 8)
    seen, norms = set(), []
    for _ in range(3):
        for each in (net, whole):
            each.zero_grad()
            each(x).square().sum().backward()
        seen |= {tuple(p.grad.placements) for p in net.parameters() if isinstance(p.grad, DTensor)}
        norms.append([float(opt.clip_grad_norm_(1.0)) for opt in opts])
        for opt in opts:
            opt.step()
    return {
        "placements": {tuple(map(repr, placements)) for placements in seen},
        "norms": norms,
        "apart": [float((full(p) - q).abs().max()) for p, q in zip(net.parameters(), whole.parameters(), strict=True)],
        "gates": [[v.gate for v in opt.last_step().values()] for opt in opts],
    }


def partial_alone(backend: str) -> Result:
    """A replicated parameter with Partial gradients, which have its shape and strides: their placements alone tell that they are sums."""
    mesh = sharded.mesh_of(4, names=("tp",))
    p = nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Replicate()]))
    whole = nn.Parameter(torch.ones(4, 4))
    opts = [onepass.SGD([each], lr=0.5, backend=backend) for each in (p, whole)]
    apart = []
    for step in range(3):
        parts = [(rank + 1.0) * torch.full((4, 4), step + 1.0) for rank in range(WORLD)]
        p.grad = DTensor.from_local(parts[dist.get_rank()], mesh, [Partial()], run_check=False)
        whole.grad = torch.stack(parts).sum(0)
        for opt in opts:
            opt.step()
        apart.append(float((full(p) - whole.detach()).abs().max()))
    return {"apart": apart}


def full(p: Tensor) -> Tensor:
    return p.detach().full_tensor() if isinstance(p, DTensor) else p.detach()


def seen_again() -> Result:
    """A gradient under way, a replaced gradient, and parameters whose local tensors were replaced."""
    run = sharded.BesideWhole(RECORDS["AdamP"], "fsdp_columns", F32, "cpu", sharded.DIVISIBLE)
    run.step("channel")
    run.give("channel")
    p = run.params[0]
    p.grad = p.grad.redistribute(placements=[Replicate()]).redistribute(placements=p.placements, async_op=True)
    run.whole.step()
    run.opt.step()
    run.compare()
    for p in run.params:
        p._local_tensor = p._local_tensor.clone()
    run.step("none")
    run.finish()
    return {}


class Tied(nn.Module):
    """A language model whose output weights are its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.norm = nn.Embedding(16, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.out = nn.Linear(8, 16, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.hidden(self.embedding(x)).relu()))


def tied(**policies: Any) -> Result:
    """Trained under a policy of FSDP2, beside an optimizer of the whole with the same gradients."""
    torch.manual_seed(0)
    net = fully_shard(Tied(), mesh=sharded.mesh_of(4), **policies)
    wholes = [nn.Parameter(full(p).detach().clone()) for p in net.parameters()]
    opt, whole = (onepass.AdamP(params, lr=0.01) for params in (list(net.parameters()), wholes))
    x = torch.randint(0, 16, (4, 6), generator=torch.Generator().manual_seed(dist.get_rank()))
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(net(x).flatten(0, 1), (x.flatten() + 1) % 16)
        loss.backward()
        for w, p in zip(wholes, net.parameters(), strict=True):
            w.grad = full(p.grad)
        opt.step()
        whole.step()
        opt.zero_grad()
        losses.append(loss.item())
    return {
        "apart": [float((full(p) - w).abs().max()) for p, w in zip(net.parameters(), wholes, strict=True)],
        "gates": [[verdict.gate for verdict in each.last_step().values()] for each in (opt, whole)],
        "dtypes": {str(p.dtype) for p in net.parameters()},
        "losses": losses,
    }


# ------------------------------------------------------------------ scaling and clipping


class MixedMeshes:
    """Parameters on two meshes and on none."""

    def __init__(self) -> None:
        mesh = sharded.mesh_of(2, 2)
        torch.manual_seed(0)
        self.wholes = [nn.Parameter(torch.randn(shape)) for shape in ((8, 4), (6, 8), (4, 6), (5,), (3, 3))]
        placements = [
            (mesh, [Shard(0), Shard(0)]),
            (mesh, [Shard(0), Shard(1)]),
            (mesh, [Replicate(), Shard(0)]),
            (mesh["dp"], [Shard(0)]),
        ]
        self.params: list[Any] = [
            nn.Parameter(distribute_tensor(w.detach().clone(), *how))
            for w, how in zip(self.wholes, placements, strict=False)
        ]
        self.params.append(nn.Parameter(self.wholes[-1].detach().clone()))

    def give(self) -> None:
        for p, w in zip(self.params, self.wholes, strict=True):
            w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(w.numel()))
            p.grad = (
                distribute_tensor(w.grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else w.grad.clone()
            )


def clipped(backend: str, name: str) -> Result:
    run = MixedMeshes()
    opt, whole = (RECORDS[name].make(params, lr=0.1, backend=backend) for params in (run.params, run.wholes))
    norms, counts = [], []
    for _ in range(2):
        run.give()
        with Counted() as counted:
            norm = opt.clip_grad_norm_(0.5)
        counts.append(len(counted.calls))
        norms.append((norm, whole.clip_grad_norm_(0.5)))
        opt.step()
        whole.step()
    assert all(sharded.same_on_all_ranks(norm) for norm, _ in norms)
    return {
        "norms": [[float(a), float(b)] for a, b in norms],
        "collectives": counts,
        "apart": max(float((full(p) - w.detach()).abs().max()) for p, w in zip(run.params, run.wholes, strict=True)),
    }


def clipped_over_stages() -> Result:
    """Two stages of a pipeline, each with parameters of its own on two ranks."""
    mesh = sharded.mesh_of(2, 2, names=("pp", "dp"))
    stage = mesh.get_local_rank("pp")
    shapes = [(4, 6), (3, 5)] if stage else [(8, 2)]
    params = [nn.Parameter(distribute_tensor(torch.zeros(shape), mesh["dp"], [Shard(0)])) for shape in shapes]
    for p in params:
        p.grad = distribute_tensor(torch.full(p.shape, 1.0 + stage), mesh["dp"], [Shard(0)])
    opt = onepass.AdamP(params, lr=0.1)
    norm = opt.clip_grad_norm_(1.0, process_groups=[mesh.get_group("pp")])
    opt.step()
    return {"norm": float(norm), "want": (16 + 4 * 39) ** 0.5, "stage": stage}


def overflowed(backend: str) -> Result:
    """An infinity on one rank, in a gradient that is not the first, which is replicated: no rank steps. (torch's scaler takes DTensors
    of one mesh alone.)"""
    mesh = sharded.mesh_of(4)
    params = [
        nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [placement])) for placement in (Replicate(), Shard(0))
    ]
    opt = onepass.AdamP(params, lr=0.1, backend=backend)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    stepped = []
    for time in range(3):
        scaler.scale(torch.ones(()))
        for number, p in enumerate(params):
            part = torch.full_like(sharded.local(p), 1.0 + number)
            if (time, dist.get_rank(), number) == (1, 1, 1):
                part[0, 0] = torch.inf
            p.grad = sharded.placed(part, p)
        before = [sharded.local(p).detach().clone() for p in params]
        scaler.step(opt)
        scaler.update()
        stepped.append([not torch.equal(sharded.local(p), q) for p, q in zip(params, before, strict=True)])
    return {"stepped": stepped, "count": float(opt.state[params[1]]["step"])}


# ------------------------------------------------------------------ training: hooks, checkpoints


def net_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 12, bias=False), nn.ReLU(), nn.Linear(12, 5))


def trained(model: nn.Module, opt: Any, times: range) -> None:
    """The same batch on all ranks, so that gradients are those of one process."""
    for time in times:
        model.zero_grad()
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(time))
        model(x).square().sum().backward()
        opt.step()


def stepped_in_backward() -> Result:
    torch.manual_seed(0)
    whole, model = net_of(), net_of()
    fully_shard(model, mesh=sharded.mesh_of(4))
    opt = onepass.AdamP(whole.parameters(), lr=0.02)
    own = {p: onepass.AdamP([p], lr=0.02) for p in model.parameters()}

    def step(p: Tensor) -> None:
        own[p].step()
        p.grad = None

    for p in own:
        p.register_post_accumulate_grad_hook(step)
    trained(whole, opt, range(3))
    for time in range(3):
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(time))
        model(x).square().sum().backward()
    apart = [float((full(p) - q).abs().max()) for p, q in zip(model.parameters(), whole.parameters(), strict=True)]
    return {"apart": apart, "left": sum(p.grad is not None for p in model.parameters())}


WAYS: dict[str, Callable[[nn.Sequential], None]] = {
    "fsdp": lambda model: sharded_by(model, 4),
    "hsdp": lambda model: sharded_by(model, 2, 2),
    "fsdp_tp": lambda model: both_ways(model),
    "whole": lambda model: None,
}


def sharded_by(model: nn.Sequential, *sizes: int) -> None:
    fully_shard(model, mesh=sharded.mesh_of(*sizes))


def both_ways(model: nn.Sequential) -> None:
    mesh = sharded.mesh_of(2, 2)
    plan = {"0": ColwiseParallel(output_layouts=Replicate()), "2": RowwiseParallel(input_layouts=Replicate())}
    parallelize_module(model, mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])


def made(way: str, name: str, options: dict[str, Any]) -> tuple[nn.Sequential, Any]:
    model = net_of()
    WAYS[way](model)
    return model, RECORDS[name].make(model.parameters(), **{**RECORDS[name].typical, **options})


def resumed(name: str, first: str, second: str, options: dict[str, Any], **how: Any) -> Result:
    """Three steps one way, saved, loaded the other way, and three more; beside six steps the first way that loaded at half time too."""
    model, opt = made(first, name, options)
    trained(model, opt, range(3))
    state = StateDictOptions(**how)
    saved = get_optimizer_state_dict(model, opt, options=state)
    weights = {key: full(p).clone() for key, p in model.named_parameters()}
    other, new = made(second, name, options)
    with torch.no_grad():
        for key, p in other.named_parameters():
            sharded.local(p).copy_(sharded_part(weights[key], p))
    if how.get("full_state_dict"):
        set_optimizer_state_dict(other, new, saved, options=StateDictOptions(full_state_dict=True))
    else:
        stored = in_memory(saved)
        target = get_optimizer_state_dict(other, new, options=state)  # takes a step with zero gradients
        stored.load(target)
        set_optimizer_state_dict(other, new, target, options=state)
    apart = {}
    for key, p in other.named_parameters():
        q = dict(model.named_parameters())[key]
        mine, theirs = new.state[p], opt.state[q]
        assert mine.keys() == theirs.keys(), (key, mine.keys(), theirs.keys())
        apart[key] = [
            name
            for name in mine
            if not torch.equal(full(mine[name]), full(theirs[name])) or mine[name].dtype != theirs[name].dtype
        ]
    trained(other, new, range(3, 6))
    trained(model, opt, range(3, 6))
    distance = max(
        float((full(p).double() - full(q).double()).abs().max())
        for p, q in zip(other.parameters(), model.parameters(), strict=True)
    )
    return {"apart": apart, "distance": distance, "counters": counters(new) == counters(opt)}


def counters(opt: Any) -> list[Any]:
    return [
        (float(own["gate_counter"]) if "gate_counter" in own else None, float(own.get("step", 0)))
        for own in opt.state.values()
    ]


def sharded_part(whole: Tensor, p: Tensor) -> Tensor:
    if not isinstance(p, DTensor):
        return whole
    return sharded.local(distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None))


class in_memory:
    """A checkpoint of torch.distributed.checkpoint in a folder that all ranks share."""

    def __init__(self, state: Any):
        self.folder = f"{sys.argv[2]}/checkpoint{in_memory.count}"
        in_memory.count += 1
        dcp.save(state, checkpoint_id=self.folder)

    count = 0

    def load(self, state: Any) -> None:
        dcp.load(state, checkpoint_id=self.folder)


def loaded_whole() -> Result:
    """A state dict of one process, and a sharded one that was saved as a file of whole tensors."""
    whole, opt = made("whole", "AdamP", {})
    trained(whole, opt, range(3))
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    model, new = made("fsdp", "AdamP", {})
    with torch.no_grad():
        for p, q in zip(model.parameters(), whole.parameters(), strict=True):
            sharded.local(p).copy_(sharded_part(q.detach(), p))
    new.load_state_dict(torch.load(file))
    trained(whole, opt, range(3, 6))
    trained(model, new, range(3, 6))
    apart = [
        float((full(p) - q.detach()).abs().max()) for p, q in zip(model.parameters(), whole.parameters(), strict=True)
    ]
    return {"apart": apart, "counters": counters(new) == counters(opt)}


# ------------------------------------------------------------------ mutants


def raw_locals(params: Any) -> bool:
    """place_gradients that takes what a rank holds of a gradient for its part."""
    found = False
    for p in params:
        if p.grad is not None and p.grad.placements != p.placements:
            part = p.grad._local_tensor
            rows = sharded.local(p).size(0)
            p.grad, found = sharded.placed(part[:rows].clone(), p), True
    return found


def largest_by_max(stats: Tensor, _: Any, over: Any) -> Tensor:
    """put_together that trusts a MAX, which may drop a NaN."""
    total, cosine = stats.clone(), stats[:, 4].clone()
    dist.all_reduce(total, group=over.group)
    dist.all_reduce(cosine, op=dist.ReduceOp.MAX, group=over.group)
    total[:, 4] = cosine
    return total


def mutant(what: str) -> Result:
    """Whether a run notices it."""
    from onepass import exchange, optimizer, reference, sharding

    decide, has_gate = reference.decide, exchange.has_gate
    changed: dict[str, tuple[Any, str, Any, Callable[[], Result], Callable[[Result], bool]]] = {
        "raw locals": (
            optimizer, "place_gradients", raw_locals, lambda: placed_otherwise("cpu"),
            lambda result: max(result["apart"]) > 1e-6,
        ),
        "MAX": (
            exchange, "put_together", largest_by_max, lambda: not_a_number("fsdp", float("nan"), 64),
            lambda result: result["gates"] != [["none", "none"]] * WORLD,
        ),
        "local row length": (
            reference, "decide", lambda stats, length, h: decide(stats, length // 4, h),
            lambda: near_the_threshold("reference"), lambda result: result["gates"] != NEAR,
        ),
        "blocks of a shard": (
            sharding, "is_cut", lambda p, block: False,
            lambda: blocks_of_parts(), lambda result: False,
        ),
        "copies counted": (
            exchange, "axes_of", lambda p, kind: axes_of_all(p, kind), lambda: clipped("cpu", "AdamW"),
            lambda result: abs(result["norms"][0][0] - result["norms"][0][1]) > 1e-3,
        ),
        "a rank without rows skips the exchange": (
            exchange, "has_gate", lambda spec, p: has_gate(spec, p) and len(sharded.local(p)) > 0,
            empty_ranks, lambda result: False,
        ),
    }  # fmt: skip
    module, name, replacement, run, noticed = changed[what]
    kept = getattr(module, name)
    setattr(module, name, replacement)
    try:
        return {"caught": noticed(run())}
    except (AssertionError, RuntimeError):  # RuntimeError: of torch's timeout
        return {"caught": True}
    finally:
        setattr(module, name, kept)


def axes_of_all(p: Tensor, kind: Any) -> Any:
    from onepass import sharding

    return sharding.axes_of(p, "all" if kind == "sharded" else kind)


def blocks_of_parts() -> Result:
    run = sharded.BesideWhole(RECORDS["AdamW"], "fsdp_columns", F32, "cpu", [(16, 512)], state_dtype="8bit")
    for gate in ("none", "none", "none"):
        run.step(gate)
    run.finish()
    return {}


NEAR = [[[True, True]] * 2, [[False, False]] * 2]
MUTANTS = [
    "raw locals", "MAX", "local row length", "blocks of a shard", "copies counted", "a rank without rows skips the exchange",
]  # fmt: skip


# ------------------------------------------------------------------ examples


def example(name: str) -> Result:
    """Its weights, beside those of a loop by hand on one process."""
    module = importlib.import_module(name)
    folder = Path(sys.argv[2]) / name
    arguments = {"fsdp2": (folder,), "tensor_parallel": (), "fabric_model_parallel": (WORLD, folder)}[name]
    if name == "fabric_model_parallel":
        os.environ.update(
            RANK=str(dist.get_rank()), LOCAL_RANK=str(dist.get_rank()), WORLD_SIZE=str(WORLD), NODE_RANK="0"
        )
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", LOCAL_WORLD_SIZE=str(WORLD), GROUP_RANK="0")
    net, losses = module.main(*arguments)
    whole, _, want = tools.ten_steps(onepass.AdamP, clip=float("inf") if name == "fabric_model_parallel" else 1.0)
    apart = [
        float((full(p) - q.detach()).abs().max()) for p, q in zip(net.parameters(), whole.parameters(), strict=True)
    ]
    return {"losses": losses, "want": want, "apart": max(apart)}


# ------------------------------------------------------------------ refusals, failures


def refused() -> Result:
    mesh = sharded.mesh_of(4)

    def said(make: Callable[[], Any]) -> str:
        try:
            make()
        except (TypeError, ValueError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "accepted"

    def parameter(shape: tuple[int, ...], placement: Any, dtype: torch.dtype = F32) -> Any:
        return nn.Parameter(distribute_tensor(torch.zeros(shape, dtype=dtype), mesh, [placement]))

    def other_state() -> None:
        p = parameter((8, 4), Shard(0))
        opt = onepass.AdamP([p], lr=0.1)
        opt.state[p]["exp_avg"] = torch.zeros(8, 4)
        p.grad = distribute_tensor(torch.zeros(8, 4), mesh, [Shard(0)])
        opt.step()

    def other_gradient(p: Tensor, g: Tensor) -> None:
        p.grad = g
        onepass.AdamP([p], lr=0.1).step()

    def vector(length: int) -> Any:
        return nn.Parameter(distribute_tensor(torch.zeros(length), sharded.mesh_of(2, 2), [Shard(0), Shard(0)]))

    whole = torch.zeros(8, 4)
    on_mesh = distribute_tensor(whole, mesh, [Shard(0)])
    on_another = distribute_tensor(whole, sharded.mesh_of(2, 2), [Shard(0), Shard(0)])

    partial = DTensor.from_local(torch.zeros(4, 4), mesh, [Partial()], run_check=False)
    return {
        "partial": said(lambda: onepass.AdamW([nn.Parameter(partial)])),
        "dim 2": said(lambda: onepass.AdamW([parameter((4, 4, 8), Shard(2))], state_dtype=BF16)),
        "blocks": said(lambda: onepass.AdamW([parameter((64, 512), Shard(1))], state_dtype="8bit")),
        "blocks cut twice": said(lambda: onepass.AdamW([vector(258 * 256)], state_dtype="8bit")),
        "whole blocks": said(lambda: onepass.AdamW([vector(260 * 256)], state_dtype="8bit")),
        "state": said(other_state),
        "plain gradient": said(lambda: other_gradient(parameter((8, 4), Shard(0)), whole)),
        "gradient of a plain one": said(lambda: other_gradient(nn.Parameter(whole.clone()), on_mesh)),
        "another mesh": said(lambda: other_gradient(parameter((8, 4), Shard(0)), on_another)),
    }


def left_alone() -> Result:
    """A rank that raises before the exchange leaves the others with an error of torch's, and nothing decided."""
    mesh = mesh_with_a_timeout()
    p = nn.Parameter(distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)], src_data_rank=None))
    opt = onepass.AdamP([p], lr=0.1)
    p.grad = distribute_tensor(torch.ones(8, 4), mesh, [Shard(0)], src_data_rank=None)
    said = ""
    try:
        if dist.get_rank() == 0:
            opt.param_groups[0]["lr"] = -1.0
        opt.step()
    except (RuntimeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
    return {"said": said, "step": float(opt.state[p]["step"]) if p in opt.state else 0.0}


RUNS: dict[str, Callable[[], Result]] = {
    **{f"beside {b} {p} {v}": lambda b=b, p=p, v=v: beside(b, p, v) for b, p, v in pairs()},
    **{f"collectives {n} {p}": lambda n=n, p=p: collectives(n, p) for n in ("AdamP", "AdamW") for p in PLACES},
    **{
        f"not a number {p} {x} {most}": lambda p=p, x=x, most=most: not_a_number(p, x, most)
        for p in ("fsdp", "fsdp_columns", "fsdp_tp")
        for x in (float("nan"), float("inf"))
        for most in (64, 1)
    },
    **{f"many ranks {p}": lambda p=p: many_ranks(p) for p in ("fsdp", "fsdp_tp")},
    **{f"uneven ranks {b}": lambda b=b: uneven_ranks(b) for b in NAMES},
    "empty ranks": empty_ranks,
    **{f"placed otherwise {b}": lambda b=b: placed_otherwise(b) for b in ("cpu", "triton")},
    **{f"partial alone {b}": lambda b=b: partial_alone(b) for b in NAMES},
    **{f"near the threshold {b}": lambda b=b: near_the_threshold(b) for b in NAMES},
    "seen again": seen_again,
    "tied": tied,
    "tied mixed precision": lambda: tied(mp_policy=MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=F32)),
    "tied offloaded": lambda: tied(offload_policy=CPUOffloadPolicy(pin_memory=False)),
    **{f"clipped {b} {n}": lambda b=b, n=n: clipped(b, n) for b in NAMES for n in ("AdamP", "AdamW")},
    "clipped over stages": clipped_over_stages,
    **{f"overflowed {b}": lambda b=b: overflowed(b) for b in ("cpu", "emulated")},
    "stepped in backward": stepped_in_backward,
    **{
        f"resumed {n} {a} {b}": lambda n=n, a=a, b=b: resumed(n, a, b, {})
        for n, a, b in (
            ("AdamP", "fsdp", "hsdp"), ("AdamP", "hsdp", "fsdp_tp"), ("SGDP", "fsdp", "whole"), ("AdamP", "whole", "fsdp"),
            ("AdamW", "fsdp_tp", "fsdp"),
        )
    },
    "resumed exact": lambda: resumed("AdamP", "fsdp", "hsdp", dict(state_dtype=BF16)),
    "resumed full": lambda: resumed("AdamP", "fsdp", "hsdp", {}, full_state_dict=True),
    "resumed flat": lambda: resumed("AdamP", "fsdp", "hsdp", {}, flatten_optimizer_state_dict=True),
    "loaded whole": loaded_whole,
    **{f"example {name}": lambda name=name: example(name) for name in ("fsdp2", "tensor_parallel", "fabric_model_parallel")},
    **{f"mutant {what}": lambda what=what: mutant(what) for what in MUTANTS},
    "refused": refused,
    "left alone": left_alone,
}  # fmt: skip


if __name__ == "__main__":
    from paths import ROOT, TESTS

    sys.path += [str(TESTS), str(ROOT / "examples/tools")]
    import conftest  # noqa: F401  Triton's interpreter

    import onepass
    import sharded
    import tools
    from processor import THREADS
    from records import RECORDS

    if len(sys.argv) > 3:  # some of them
        RUNS = {name: run for name, run in RUNS.items() if sys.argv[3] in name}
    run_all(RUNS, WORLD, THREADS)
