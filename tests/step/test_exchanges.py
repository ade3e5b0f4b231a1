"""The exchange of row statistics between update and decide: rows of a tensor in two plans get the bits of one plan."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_bits
from onepass.backend import base
from onepass.backend.registry import make_backends
from onepass.phases import take_step
from onepass.scaling import NO_SCALING
from onepass.state import make_state
from records import BACKENDS, RECORDS, Record, each_projected
from tensors import gradient, values

# Rows for a lane, a warp, a block and the row cache, rows that are cut into pieces; a tensor without a gate among them.
SHAPES = [(6, 20), (2, 200), (9, 3, 3), (50,), (2, 40_001), (3, 40_001), (2, 1500), (4, 1500)]
GATES = ["channel", "none", "layer", "channel", "channel", "layer", "none"]  # of the steps

each_backend = pytest.mark.parametrize("backend", BACKENDS)


def add_up(backends: Sequence[Any]) -> None:
    """Adds the sums, and takes the largest cosine; a NaN is larger than any number."""
    stats = [backend.stats for backend in backends]
    total = torch.stack(stats).sum(dim=0)
    cosine = base.STATS.index("max_cosine_squared")
    total[:, cosine] = torch.stack(stats).amax(dim=0)[:, cosine]
    for each in stats:
        each.copy_(total)


class Halves:
    """The parameters of `opt`, each cut between two rows, with a plan for the upper parts and one for the lower."""

    def __init__(self, opt: Any, backend: str):
        self.whole = opt
        self.opts = []
        for part in range(2):
            params = [self.part(p, part).clone() for p in opt.param_groups[0]["params"]]
            group = {k: v for k, v in opt.param_groups[0].items() if k != "params"}
            self.opts.append(type(opt)([{**group, "params": params, "backend": backend}], lr=1.0))
        self.bound: list[Any] = []

    @staticmethod
    def part(x: Tensor, part: int) -> Tensor:
        rows = -(-x.size(0) // 3)
        return x[rows:] if part else x[:rows]

    def step(self, exchange: Callable[[Sequence[Any]], None] = add_up) -> None:
        backends, hypers = [], []
        for number, opt in enumerate(self.opts):
            for p, whole in zip(opt.param_groups[0]["params"], self.whole.param_groups[0]["params"], strict=True):
                p.grad = self.part(whole.grad, number).clone()
            hypers = opt._hypers()
            first = make_state(opt.spec, opt.param_groups, hypers, opt.state, counts_on_device=False)
            (backend,) = make_backends(opt.spec, opt.param_groups, [])
            backend.bind(opt.state, list(first), exchanges=True)
            assert backend.ready(opt.param_groups, hypers, True)
            backends.append(backend)
        take_step(backends, hypers, NO_SCALING, exchange)
        self.bound = backends

    def assert_same_as_whole(self) -> None:
        """The same bits. Under the layer gate one last place where <p,u> is a sum of more than two rows, which depends on their
        order, or where the whole takes <p,p> from `gate_stats`; the halves then continue with the numbers of the whole."""
        verdicts, speculates = self.whole.last_step(), self.whole.param_groups[0]["speculate"]
        for i, p in enumerate(self.whole.param_groups[0]["params"]):
            halves = [opt.param_groups[0]["params"][i] for opt in self.opts]
            states = [opt.state[half] for opt, half in zip(self.opts, halves, strict=True)]
            summed = p in verdicts and verdicts[p].gate == "layer" and (p.size(0) > 2 or not speculates)
            self.compare(halves, p, summed, f"parameter {i}")
            for key, whole in self.whole.state[p].items():
                own = [state[key] for state in states]
                if key in ("step", "gate_counter"):
                    assert own[0] == own[1] == whole, key
                else:
                    self.compare(own, whole, summed, f"{key} of parameter {i}")

    def compare(self, halves: list[Tensor], whole: Tensor, summed: bool, what: str) -> None:
        if not summed:
            return assert_same_bits(torch.cat(halves), whole, what)
        together, eps = torch.cat(halves).double(), torch.finfo(whole.dtype).eps
        assert ((together - whole.double()).abs() <= eps * whole.double().abs()).all(), what
        with torch.no_grad():
            for number, half in enumerate(halves):
                half.copy_(self.part(whole, number))

    def verdicts(self) -> list[list[tuple[str, bool]]]:
        """Gates and corrections of both halves."""
        found = []
        for opt, backend in zip(self.opts, self.bound, strict=True):
            last = onepass.last_step.LastStep(backend.verdicts(), opt.param_groups)
            found.append([(v.gate, v.corrected) for v in last.values()])
        return found


def start(record: Record, backend: str, dtype: torch.dtype, arguments: dict[str, Any]) -> Any:
    params = [values(shape, dtype, seed, scale=0.7) for seed, shape in enumerate(SHAPES)]
    return record.make(params, backend=backend, **{**record.typical, **arguments})


@each_backend
@each_projected
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("projection", ["auto", "channel", "layer", "none"])
def test_two_plans_give_the_bits_of_one(backend: str, record: Record, dtype: torch.dtype, projection: str) -> None:
    opt = start(record, backend, dtype, {"projection": projection})
    halves = Halves(opt, backend)
    for time, gate in enumerate(GATES):
        for number, p in enumerate(opt.param_groups[0]["params"]):
            p.grad = gradient(gate if p.dim() > 1 else "none", p, 10 * time + number)
        opt.step()
        halves.step()
        halves.assert_same_as_whole()
        gates = [v.gate for v in opt.last_step().values()]
        if projection == "auto":
            assert gates == [gate] * len(gates)
        for found in halves.verdicts():
            assert [each for each, _ in found] == gates
            if dtype == torch.bfloat16:
                assert not any(corrected for _, corrected in found)
            else:
                assert [c for _, c in found] == [v.corrected for v in opt.last_step().values()]


@each_backend
@pytest.mark.parametrize("arguments", [{"nesterov": True}, {"speculate": False}, {"decay": "proximal"}], ids=str)
def test_options_in_two_plans(backend: str, arguments: dict[str, Any]) -> None:
    record = RECORDS["AdamP"]
    opt = start(record, backend, torch.float32, arguments)
    halves = Halves(opt, backend)
    for time, gate in enumerate(GATES[:4]):
        for number, p in enumerate(opt.param_groups[0]["params"]):
            p.grad = gradient(gate if p.dim() > 1 else "none", p, 10 * time + number)
        opt.step()
        halves.step()
        halves.assert_same_as_whole()


@each_backend
def test_one_row_closes_the_gate_of_both_plans(backend: str) -> None:
    """Also of the half that has no such row; so does a NaN."""
    for wrong in (1.0, float("nan")):
        opt = start(RECORDS["AdamP"], backend, torch.float32, {})
        halves = Halves(opt, backend)
        for p in opt.param_groups[0]["params"]:
            p.grad = gradient("channel" if p.dim() > 1 else "none", p, 1)
            if p.dim() > 1:
                p.grad[-1] = p.detach()[-1] * wrong
        halves.step()
        for found in halves.verdicts():
            for gate, _ in found:
                assert gate == "none" if wrong != wrong else gate != "channel"


@each_backend
def test_exchanged_fields(backend: str) -> None:
    """Each exchanged column has the numbers of its name in STATS."""
    opt = start(RECORDS["AdamP"], backend, torch.float64, {})
    halves = Halves(opt, backend)
    for number, p in enumerate(opt.param_groups[0]["params"]):
        p.grad = gradient("none", p, number)
    seen: list[Tensor] = []

    def look_at(backends: Sequence[Any]) -> None:
        add_up(backends)
        seen.append(backends[0].stats.clone())

    halves.step(look_at)
    for number, p in enumerate(opt.param_groups[0]["params"]):
        if p.dim() == 1:
            continue
        found = dict(zip(base.STATS, seen[0][number].tolist(), strict=True))
        x, g = p.detach().reshape(p.size(0), -1), p.grad.reshape(p.size(0), -1)
        assert found["rows"] == p.size(0)
        assert found["pp"] == pytest.approx(float((x * x).sum()), rel=1e-12)
        assert found["gg"] == pytest.approx(float((g * g).sum()), rel=1e-12)
        assert found["pg"] == pytest.approx(float((x * g).sum()), abs=1e-12 * float(x.norm() * g.norm()))
        cosines = (x * g).sum(1) ** 2 / ((x * x).sum(1) * (g * g).sum(1))
        assert found["max_cosine_squared"] == pytest.approx(float(cosines.max()), rel=1e-9)


def bound_to(opt: Any, exchanges: bool) -> Any:
    """A backend that is bound to an optimizer whose parameters have gradients."""
    hypers = opt._hypers()
    first = make_state(opt.spec, opt.param_groups, hypers, opt.state, counts_on_device=False)
    (backend,) = make_backends(opt.spec, opt.param_groups, [])
    backend.bind(opt.state, list(first), exchanges=exchanges)
    return backend


@each_backend
def test_tensors_without_a_gradient_add_nothing(backend: str) -> None:
    """Not what the last exchange has left either."""
    opt = start(RECORDS["AdamP"], backend, torch.float32, {})
    params = opt.param_groups[0]["params"]
    for p in params:
        p.grad = torch.ones_like(p)
    bound = bound_to(opt, exchanges=True)
    for time in range(3):
        if time:
            params[1].grad = None
            if backend == "reference":  # which is bound for one step
                bound.bind(opt.state, [], exchanges=True)
        assert bound.ready(opt.param_groups, opt._hypers(), True)

        def add_and_look(backends: Sequence[Any], time: int = time) -> None:
            rows = backends[0].stats[:, base.STATS.index("rows")]
            assert rows[0] == params[0].size(0) and rows[1] == (0 if time else params[1].size(0))
            backends[0].stats.mul_(2)

        take_step([bound], opt._hypers(), NO_SCALING, add_and_look)


def test_a_step_that_was_given_up_leaves_nothing_behind() -> None:
    """The CPU backend: no step count, and no work items for the next sum."""
    opt = start(RECORDS["AdamP"], "cpu", torch.float32, {})
    params = opt.param_groups[0]["params"]
    for number, p in enumerate(params):
        p.grad = gradient("channel" if p.dim() > 1 else "none", p, number)
    opt.step()  # the counters predict channel
    for p in params:
        p.grad = torch.ones_like(p)
    bound = bound_to(opt, exchanges=False)
    assert bound.ready(opt.param_groups, opt._hypers(), True)
    bound.begin(opt._hypers(), NO_SCALING)
    bound.gate_stats()
    bound.update()
    bound.decide()  # queues what is mispredicted
    assert {float(own["step"]) for own in opt.state.values()} == {1.0}
    assert bound.ready(opt.param_groups, opt._hypers(), False)
    assert float(bound.square_sum()) == sum(p.numel() for p in params)


def test_statistics_outlive_their_plan() -> None:
    opt = start(RECORDS["AdamP"], "cpu", torch.float32, {})
    for p in opt.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    bound = bound_to(opt, exchanges=True)
    plan = weakref.ref(bound.plan)
    stats = bound.stats
    del bound
    assert plan() is not None
    del stats
    assert plan() is None
