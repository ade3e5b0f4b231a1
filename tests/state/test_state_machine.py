"""Random sequences of operations of a training script (hypothesis), compared with a model built on reference.py.

Several parameters of different dtype, layout, group, sign and step count; gradients that are new, refilled in place, negated,
strided otherwise, missing, or not finite; plain, clipped, scaled and skipped steps; saving, loading, copying and pickling;
changes of options, weights, state and threads in between. All parameters and states are compared after every step.
"""

from __future__ import annotations

import copy
import math
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import Tensor

import truth
from compare import Snapshot, assert_same_bits, assert_within
from drive import parameters_of, through_a_file
from onepass import reference
from onepass.dtypes import compute_dtype
from onepass.hyperparams import Hyper, has_moments, hyper_of
from onepass.precision import numbers_of
from onepass.spec import OptimizerSpec
from onepass.verdict import Verdict
from records import Record, each_optimizer
from side_by_side import UNITS
from tensors import LAYOUTS, gradient, values

SHAPES = [(6, 20), (13,), (4, 3, 3, 3), (), (3, 17)]
OPTIONS: dict[str, list[Any]] = {
    "lr": [0.0, 1e-3, 0.1],
    "weight_decay": [0.0, 0.1, 2.0],
    "betas": [(0.9, 0.999), (0.5, 0.9), (0.0, 0.0)],
    "eps": [1e-8, 1e-3, 0.0],
    "momentum": [0.0, 0.5, 0.9],
    "dampening": [0.0, 0.4],
    "nesterov": [False, True],
    "delta": [0.1, 3.3, 0.0],
    "wd_ratio": [0.1, 1.0],
    "decay": ["decoupled", "proximal"],
    "project_momentum": [False, True],
    "maximize": [False, True],
    "speculate": [True, False],
}
LIVE = ("lr", "weight_decay", "momentum")  # may be device tensors in a capturable group
KINDS = ["channel", "none", "layer", "zero", "tiny", "huge", "nan", "inf"]
WAYS = ["new", "refill", "refill", "negated", "transposed", "keep", "missing"]


def some_gradient(kind: str, p: Tensor, seed: int) -> Tensor:
    """A gradient of one kind; a vector has no gate, and gets random values."""
    if kind == "zero":
        return torch.zeros_like(p)
    g = (
        gradient(kind if kind in ("layer", "none") else "channel", p, seed)
        if p.dim() > 1
        else values(p.shape, p.dtype, seed)
    )
    if kind in ("tiny", "huge"):
        g = g * (1e-18 if kind == "tiny" else 1e12)
    if kind in ("nan", "inf"):
        g.view(-1)[seed % g.numel()] = math.nan if kind == "nan" else math.inf
    return g


def step(spec: OptimizerSpec, p: Tensor, state: dict[str, Any], h: Hyper, first: bool, number: int) -> Verdict | None:
    """The phases of the reference on one parameter."""
    pending = reference.update(spec, p, p.grad, state, h, first, number)
    if pending is None:
        return None
    stats = pending.rows.stats()
    pending.verdict = reference.decide(stats, p.numel() // p.size(0), h)
    reference.correct(spec, p, state, h, pending, stats)
    return pending.verdict


class Model:
    """Options and parameters of each group, and the state for reference.py."""

    def __init__(self, record: Record):
        self.record, self.spec = record, record.make.spec
        self.groups: list[dict[str, Any]] = []
        self.params: list[list[Tensor]] = []
        self.state: dict[int, dict[str, Any]] = {}
        self.counters: dict[int, int] = {}

    def pairs(self) -> list[tuple[Tensor, dict[str, Any]]]:
        return [(q, group) for qs, group in zip(self.params, self.groups, strict=True) for q in qs]

    def forget(self, q: Tensor) -> None:
        """A later parameter may get the id of one that is gone, but never its state."""
        self.state.pop(id(q), None)
        self.counters.pop(id(q), None)

    def step(self, factor: float) -> dict[int, reference.Verdict]:
        """Steps every parameter that has a gradient, multiplied by `factor`; returns the verdicts by id."""
        verdicts = {}
        numbers = numbers_of([{"params": qs} for qs in self.params])
        for index, (qs, group) in enumerate(zip(self.params, self.groups, strict=True)):
            h = hyper_of(self.spec, {**group, "params": qs}, index, False)
            h = type(h)(**{**vars(h), "grad_scale": h.grad_scale * factor})
            for number, q in enumerate(qs, numbers[index]):
                if q.grad is None:
                    continue
                own, first = self.state.setdefault(id(q), {}), False
                if self.spec.counted:
                    own.setdefault("step", torch.zeros(()))
                for key in self.spec.moments if has_moments(self.spec, h) else ():
                    first |= key not in own
                    own.setdefault(key, torch.zeros(q.shape, dtype=compute_dtype(q.dtype)))
                verdict = step(self.spec, q, own, h, first, number)
                if verdict is not None:
                    verdicts[id(q)] = verdict
                    if group["backend"] != "reference":  # the reference does not predict
                        counter = self.counters.get(id(q), 1)
                        self.counters[id(q)] = min(counter + 1, 3) if verdict.gate == "channel" else max(counter - 1, 0)
        return verdicts


class Machine(RuleBasedStateMachine):
    record: Record
    backend: str
    dtypes: list[torch.dtype]

    # ------------------------------------------------------------------ set-up

    @initialize(
        options=st.tuples(*[st.fixed_dictionaries({k: st.sampled_from(v) for k, v in OPTIONS.items()})] * 2),
        capturable=st.booleans(),
        seed=st.integers(0, 9),
    )
    def make(self, options: tuple[dict[str, Any], ...], capturable: bool, seed: int) -> None:
        self.model = Model(self.record)
        self.capturable = capturable and self.backend in ("emulated", "triton")
        taken = self.record.make([torch.zeros(1)], lr=0.1, backend="reference").defaults
        groups = []
        for number, given in enumerate(options):
            own = {key: value for key, value in given.items() if key in taken}
            self.correct(own)
            params = [self.parameter(shape, seed + 10 * number + i) for i, shape in enumerate(SHAPES[number::2])]
            groups.append({"params": params, **own})
            self.track(params, {**taken, **own, "backend": self.backend})
        self.ours = self.record.make(groups, lr=0.1, backend=self.backend, capturable=self.capturable)
        self.clip: Tensor | None = None
        self.changed_since_clip = False
        self.seed = seed
        self.give_gradients(seed, mixed=False, ugly=0)

    def correct(self, options: dict[str, Any]) -> None:
        """torch's SGD accepts nesterov only with momentum and without dampening."""
        if self.record.name == "SGD" and options.get("nesterov"):
            options.update(momentum=options["momentum"] or 0.5, dampening=0.0)

    def parameter(self, shape: tuple[int, ...], seed: int) -> Tensor:
        dtype = self.dtypes[seed % len(self.dtypes)]
        p = values(shape, dtype, seed)
        return p.to(memory_format=torch.channels_last) if len(shape) == 4 and seed % 2 else p

    def track(self, params: list[Tensor], options: dict[str, Any]) -> None:
        self.model.params.append([p.clone() for p in params])
        self.model.groups.append(
            {key: value for key, value in options.items() if key != "capturable"} | {"capturable": False}
        )

    def both(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(parameters_of(self.ours), [q for q, _ in self.model.pairs()], strict=True))

    def pick(self, which: int) -> tuple[Tensor, Tensor]:
        pairs = self.both()
        return pairs[which % len(pairs)]

    # ------------------------------------------------------------------ gradients

    @rule(seed=st.integers(0, 2**20), mixed=st.booleans(), ugly=st.integers(0, 4))
    def give_gradients(self, seed: int, mixed: bool, ugly: int) -> None:
        """To every parameter. If `mixed`, by all of WAYS; if `ugly` is 4, one in eight gets zero or extreme values."""
        choose = random.Random(seed)
        for p, q in self.both():
            self.seed += 1
            way = choose.choice(WAYS if mixed else WAYS[:2])
            kind = choose.choice(KINDS[3:]) if ugly == 4 and choose.random() < 0.125 else choose.choice(KINDS[:3])
            if way == "keep" and p.grad is not None:
                continue
            if way == "missing":
                p.grad = q.grad = None
                continue
            q.grad = g = some_gradient(kind, q, self.seed)
            self.changed_since_clip = True
            if way == "refill" and p.grad is not None:
                with torch.no_grad():
                    p.grad.copy_(g)
            elif way == "negated":
                p.grad = torch._neg_view(-g)
            elif way == "transposed":
                layout = LAYOUTS["transposed"]
                p.grad = torch.empty_strided(g.shape, layout.strides(g.shape), dtype=g.dtype).copy_(g)
            else:
                p.grad = g.clone()

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        self.ours.zero_grad(set_to_none)
        self.clip = None
        for _, q in self.both():
            q.grad = None if set_to_none or q.grad is None else torch.zeros_like(q)

    # ------------------------------------------------------------------ steps

    @rule()
    def step(self) -> None:
        self.check_step(1.0)

    @rule(seed=st.integers(0, 2**20), ugly=st.integers(0, 4))
    def step_on_mixed_gradients(self, seed: int, ugly: int) -> None:
        self.give_gradients(seed, mixed=True, ugly=ugly)
        self.check_step(1.0)

    @rule(seed=st.integers(0, 2**20), times=st.integers(1, 4))
    def train(self, seed: int, times: int) -> None:
        """Several steps with changing gates."""
        for time in range(times):
            self.give_gradients(seed + time, mixed=False, ugly=0)
            self.check_step(1.0)

    @rule(limit=st.sampled_from([1e-3, 0.5, 1e6]))
    def clip_gradients(self, limit: float) -> None:
        if self.clip is not None and self.changed_since_clip:
            return  # refused, or a new clipping: tests/step/test_clip.py
        norm = self.ours.clip_grad_norm_(limit)
        sums = [float(q.grad.double().square().sum()) for _, q in self.both() if q.grad is not None]
        factor = 1.0 if self.clip is None else float(self.clip)
        if math.isfinite(sum(sums)):
            assert float(norm) == pytest.approx(math.sqrt(math.fsum(sums)) * factor, rel=1e-5, abs=1e-30)
        coefficient = (limit / (norm + 1e-6)).clamp(max=1.0)
        self.clip = coefficient if self.clip is None else coefficient * self.clip
        self.changed_since_clip = False

    @rule(scale=st.sampled_from([1.0, 0.25, 1024.0]), overflow=st.booleans(), wide=st.booleans())
    def scaled_step(self, scale: float, overflow: bool, wide: bool) -> None:
        """A step as torch.amp.GradScaler calls it for an optimizer that unscales the gradients itself."""
        self.ours.grad_scale = torch.tensor(scale, dtype=torch.float64 if wide else torch.float32)
        self.ours.found_inf = torch.tensor(float(overflow))
        try:
            self.check_step(1 / scale, skipped=overflow)
        finally:
            del self.ours.grad_scale, self.ours.found_inf

    def check_step(self, factor: float, skipped: bool = False) -> None:
        if self.clip is not None:
            if self.changed_since_clip and any(q.grad is not None for _, q in self.both()):
                before = Snapshot(self.ours)
                with pytest.raises(RuntimeError, match="after clip_grad_norm_"):
                    self.ours.step()
                before.assert_unchanged()
                self.zero_grad(True)
                return
            factor *= float(self.clip)
        before = {id(q): (truth.wide(q, float), self.wide_state(q)) for _, q in self.both()}
        versions = [p._version for p in parameters_of(self.ours)]
        kept = [p.clone() for p in parameters_of(self.ours)]
        self.ours.step()
        self.clip = None
        if skipped:
            for p, start in zip(parameters_of(self.ours), kept, strict=True):
                assert_same_bits(p, start, "a skipped step")
            return
        verdicts = self.model.step(factor)
        seen = self.ours.last_step()
        assert {id(p) for p in seen} == {id(p) for p, q in self.both() if id(q) in verdicts}
        for i, ((p, q), version) in enumerate(zip(self.both(), versions, strict=True)):
            assert (p._version > version) == (q.grad is not None)
            self.compare(f"parameter {i}, {p.dtype}", p, q, verdicts.get(id(q)), factor, *before[id(q)])

    def compare(
        self, name: str, p: Tensor, q: Tensor, verdict: Any, factor: float, x: Any, state: dict[str, Any]
    ) -> None:
        group = next(group for other, group in self.model.pairs() if other is q)
        own, other = self.ours.state.get(p, {}), self.model.state.get(id(q), {})
        projects_buffer = verdict is not None and group.get("project_momentum") and not group["nesterov"]
        for key, value in other.items():
            if not (projects_buffer and key == "momentum"):
                assert_same_bits(own[key].detach(), value, f"{name}, {key}")
        if verdict is None:
            assert_same_bits(p, q, name)
            return
        assert self.ours.last_step()[p].gate == verdict.gate, name
        if "gate_counter" in own and group["backend"] != "reference":
            assert int(own["gate_counter"]) == self.model.counters[id(q)], name
        with np.errstate(all="ignore"):
            g = truth.wide(q.grad, float) * factor
            want = truth.step(self.record.name, group, x, g, state)
        if np.isfinite(want.size).all() and np.isfinite(want.u_size).all():
            near = want.p if p.element_size() == 2 else q
            assert_within(p, near, want.size, UNITS, name)
            if projects_buffer:
                assert_within(own["momentum"], other["momentum"], want.u_size, UNITS, f"{name}, momentum")
        else:
            assert torch.equal(p.isfinite(), q.isfinite()), name
        # Both continue from the same numbers, so that errors do not accumulate.
        with torch.no_grad():
            p.copy_(q)
            if projects_buffer:
                own["momentum"].copy_(other["momentum"])

    def wide_state(self, q: Tensor) -> dict[str, Any]:
        zero = truth.wide(torch.zeros_like(q), float)
        fresh = {"step": 0.0} | ({} if self.record.name == "SGD" else dict.fromkeys(self.record.moments, zero))
        return fresh | {key: truth.wide(value, float) for key, value in self.model.state.get(id(q), {}).items()}

    @precondition(lambda self: self.clip is None)
    @rule(which=st.integers(0, 20))
    def refused_step(self, which: int) -> None:
        """A refused step writes nothing and has no effect on the next one."""
        p, _ = self.pick(which)
        if p.numel() < 2:
            return
        kept, p.grad = p.grad, torch.ones((), dtype=p.dtype).expand(p.shape)
        before = Snapshot(self.ours)
        with pytest.raises(ValueError, match="expanded"):
            self.ours.step()
        before.assert_unchanged()
        p.grad = kept

    # ------------------------------------------------------------------ options

    @rule(which=st.integers(0, 5), data=st.data())
    def set_option(self, which: int, data: st.DataObject) -> None:
        number = which % len(self.model.groups)
        mine, model = self.ours.param_groups[number], self.model.groups[number]
        key = data.draw(st.sampled_from([key for key in OPTIONS if key in model]))
        changed = {key: data.draw(st.sampled_from(OPTIONS[key]))}
        if self.record.name == "SGD":
            changed = {**{k: model[k] for k in ("momentum", "dampening", "nesterov")}, **changed}
            self.correct(changed)
        model.update(changed)
        for name, value in changed.items():
            if self.capturable and name in LIVE and data.draw(st.booleans()):
                if isinstance(mine[name], Tensor):
                    mine[name].fill_(value)
                    continue
                value = torch.tensor(value, dtype=torch.float64)
            mine[name] = value

    @precondition(lambda self: not self.capturable)
    @rule(which=st.integers(0, 5), name=st.sampled_from(["reference", "cpu", "own"]))
    def change_backend(self, which: int, name: str) -> None:
        name = self.backend if name == "own" else name
        number = which % len(self.model.groups)
        self.ours.param_groups[number]["backend"] = self.model.groups[number]["backend"] = name

    @rule(threads=st.sampled_from([1, 2, 3]))
    def change_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    @precondition(lambda self: len(self.model.groups) < 4)
    @rule(shape=st.sampled_from(SHAPES))
    def add_group(self, shape: tuple[int, ...]) -> None:
        self.seed += 1
        p = self.parameter(shape, self.seed)
        self.ours.add_param_group({"params": [p], "lr": 0.05})
        self.track([p], {**self.ours.defaults, "lr": 0.05})

    @precondition(lambda self: len(self.model.groups) > 2)
    @rule()
    def drop_group(self) -> None:
        for p in self.ours.param_groups.pop()["params"]:
            self.ours.state.pop(p, None)
        self.model.groups.pop()
        for q in self.model.params.pop():
            self.model.forget(q)

    # ------------------------------------------------------------------ tensors

    @rule(which=st.integers(0, 20), how=st.sampled_from(["data", "layout", "in place"]))
    def change_weights(self, which: int, how: str) -> None:
        p, q = self.pick(which)
        with torch.no_grad():
            if how == "in place":
                p.mul_(0.5)
                q.mul_(0.5)
            elif how == "data":
                p.data = p.data.clone()
            else:
                strides = LAYOUTS["transposed"].strides(p.shape)
                p.data = torch.empty_strided(p.shape, strides, dtype=p.dtype).copy_(p)

    @rule(which=st.integers(0, 20))
    def replace_state(self, which: int) -> None:
        """By copies, every other one transposed; adds foreign entries."""
        p, _ = self.pick(which)
        own = self.ours.state.get(p, {})
        for number, (key, value) in enumerate([*own.items()]):
            if isinstance(value, Tensor):
                strides = LAYOUTS["transposed" if number % 2 else "contiguous"].strides(value.shape)
                own[key] = torch.empty_strided(value.shape, strides, dtype=value.dtype).copy_(value)
        own["note"] = "of a hook"
        self.ours.state["note"] = which

    @rule(which=st.integers(0, 20))
    def start_anew(self, which: int) -> None:
        """New weights in place and no state, as for a reinitialized layer."""
        p, q = self.pick(which)
        self.seed += 1
        with torch.no_grad():
            q.copy_(values(q.shape, q.dtype, self.seed))
            p.copy_(q)
        self.ours.state.pop(p, None)
        self.model.forget(q)

    # ------------------------------------------------------------------ checkpoints and copies

    @rule(other_options=st.booleans(), lost=st.integers(0, 40))
    def save_and_load(self, other_options: bool, lost: int) -> None:
        """Optionally into an optimizer with other options, and without the state of one parameter, which restarts."""
        saved = through_a_file(self.ours.state_dict())
        if lost < len(self.both()):
            saved["state"].pop(lost, None)
            self.model.forget(self.pick(lost)[1])
        old = self.ours
        groups = [{"params": [p.detach().clone() for p in group["params"]]} for group in old.param_groups]
        for group, before in zip(groups, old.param_groups, strict=True):
            group["backend"] = before["backend"]
        arguments = {"lr": 0.7, "weight_decay": 0.9} if other_options else {"lr": 0.1}
        self.ours = self.record.make(groups, backend=self.backend, capturable=self.capturable, **arguments)
        self.ours.load_state_dict(saved)
        self.ours.defaults = old.defaults  # for groups to come
        self.adopt(old)

    @rule(how=st.sampled_from(["deepcopy", "pickle"]))
    def copy(self, how: str) -> None:
        old = self.ours
        self.ours = copy.deepcopy(old) if how == "deepcopy" else pickle.loads(pickle.dumps(old))
        self.adopt(old)

    def adopt(self, old: Any) -> None:
        """Gives a copy its gradients; it has no pending clipping. Its options and state must equal the model's."""
        self.clip = None
        for p, before in zip(parameters_of(self.ours), parameters_of(old), strict=True):
            p.grad = None if before.grad is None else before.grad.resolve_neg().clone()
        for mine, model in zip(self.ours.param_groups, self.model.groups, strict=True):
            for key in OPTIONS.keys() & model.keys():
                got = mine[key]
                assert (float(got) if isinstance(got, Tensor) else got) == model[key], key
            assert mine["backend"] == model["backend"]
        for i, (p, q) in enumerate(self.both()):
            assert_same_bits(p, q, f"copied parameter {i}")
            for key, value in self.model.state.get(id(q), {}).items():
                assert_same_bits(self.ours.state[p][key].detach(), value, f"copied {key} of parameter {i}")

    def teardown(self) -> None:
        torch.set_num_threads(1)


DTYPES = {
    "cpu": [torch.float32, torch.bfloat16, torch.float64],
    "emulated": [torch.float32, torch.bfloat16, torch.float64],
    "triton": [torch.float32, torch.bfloat16],
}
EXAMPLES = {"cpu": 30, "emulated": 15, "triton": 5}


@pytest.mark.parametrize("backend", EXAMPLES)
@each_optimizer
def test_sequences(backend: str, record: Record) -> None:
    machine = type("Sequence", (Machine,), {"record": record, "backend": backend, "dtypes": DTYPES[backend]})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=EXAMPLES[backend], stateful_step_count=30, print_blob=True)
    )
