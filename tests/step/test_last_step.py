"""last_step(): gate statistics, the same on every backend, of one step only, and at no cost until they are read."""

from __future__ import annotations

import copy
import importlib
import itertools
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import emulated_backend
import onepass
from drive import parameters, train
from onepass.last_step import LastStep
from onepass.scaling import Scaling
from paths import ROOT
from records import BACKENDS, COMPILED, RECORDS, Record, each_backend, each_optimizer, each_projected
from tensors import gradient, values

GATES = ("channel", "none", "layer", "none", "channel")
SHAPES = ((12, 40), (7,), (5, 3, 3), (300,), (1, 64))
PROJECTED = [i for i, shape in enumerate(SHAPES) if len(shape) > 1]
TENSORS = ("gate", "cosine", "p_norm", "g_norm", "corrected")


def feed(opt: Any, gates: tuple[str, ...], seed: int = 0) -> None:
    """Sets gradients with which the matrices take these gates."""
    for i, p in enumerate(params_of(opt)):
        p.grad = gradient(gates[i], p, seed + i) if p.dim() > 1 else values(p.shape, p.dtype, seed + i)


def params_of(opt: Any) -> list[Tensor]:
    return [p for group in opt.param_groups for p in group["params"]]


def make(
    record: Record, backend: str, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> Any:
    """An optimizer of two groups."""
    params = [values(shape, dtype, i) for i, shape in enumerate(shapes)]
    half = (len(shapes) + 1) // 2
    groups = [{"params": params[:half]}, {"params": params[half:], "lr": 0.2}]
    return record.make(groups, **{**record.typical, "backend": backend})


def stepped(record: Record, backend: str, dtype: torch.dtype = torch.float32) -> Any:
    opt = make(record, backend, dtype)
    feed(opt, GATES)
    opt.step()
    return opt


# ------------------------------------------------------------------ gate statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@each_backend
@each_projected
def test_matches_the_reference(record: Record, backend: str, dtype: torch.dtype) -> None:
    last, want = stepped(record, backend, dtype).last_step(), stepped(record, "reference", dtype).last_step()
    assert [onepass.GATES[code] for code in last.gate] == [GATES[i] for i in PROJECTED]
    torch.testing.assert_close(last.gate, want.gate, rtol=0, atol=0)
    for name in ("cosine", "p_norm", "g_norm"):
        # Sums of float32 over short runs; where the gate is channel, the cosines are their rounding errors.
        torch.testing.assert_close(getattr(last, name), getattr(want, name), rtol=1e-5, atol=1e-4, msg=name)
    assert [t.dtype for t in (last.gate, last.cosine, last.corrected)] == [torch.int32, torch.float64, torch.bool]


@each_backend
@each_projected
def test_tensors_and_mapping_agree(record: Record, backend: str) -> None:
    opt = stepped(record, backend)
    last = opt.last_step()
    assert list(map(id, last)) == list(map(id, last.params)) == [id(params_of(opt)[i]) for i in PROJECTED]
    for place, (p, verdict) in enumerate(last.items()):
        assert verdict == last[p] == last.get(p)
        numbers = (getattr(last, name)[place].item() for name in TENSORS)
        assert verdict == onepass.Verdict(onepass.GATES[next(numbers)], *numbers)
    assert len(last) == len(PROJECTED) and str(tuple(SHAPES[0])) in repr(last)
    vector = params_of(opt)[1]
    assert vector not in last and last.get(vector) is None
    with pytest.raises(KeyError):
        last[vector]


@pytest.mark.parametrize("backend", COMPILED)
@each_projected
def test_wrong_prediction_is_corrected(record: Record, backend: str) -> None:
    """The first step predicts none; after three steps of the gate channel the prediction is right."""
    opt = stepped(record, backend)
    assert opt.last_step().corrected.tolist() == [GATES[i] != "none" for i in PROJECTED]
    for seed in (10, 20, 30):
        feed(opt, ("channel",) * len(SHAPES), seed)
        opt.step()
    assert opt.last_step().corrected.tolist() == [False] * len(PROJECTED)


@each_backend
@each_projected
def test_without_speculation_nothing_is_corrected(record: Record, backend: str) -> None:
    """Although `correct` writes the tensors whose gate is layer."""
    opt = make(record, backend)
    for group in opt.param_groups:
        group["speculate"] = False
    feed(opt, GATES)
    opt.step()
    assert opt.last_step().corrected.tolist() == [False] * len(PROJECTED)


@each_backend
@each_projected
def test_parameters_without_a_gradient_are_left_out(record: Record, backend: str) -> None:
    opt = stepped(record, backend)
    first = params_of(opt)[0]
    first.grad = None
    opt.step()
    last = opt.last_step()
    assert first not in last
    assert len(last) == len(PROJECTED) - 1 == len(last.gate)
    norms = [float(p.grad.double().norm()) for p in last.params]
    assert last.g_norm.tolist() == pytest.approx(norms, rel=1e-5)


@each_backend
@each_optimizer
def test_empty_before_a_step_and_without_projection(record: Record, backend: str) -> None:
    opt = make(record, backend)
    assert not opt.last_step() and opt.last_step() == {} and opt.last_step().flat() == {}
    last = opt.last_step()
    assert [len(getattr(last, name)) for name in TENSORS] == [0] * len(TENSORS)
    feed(opt, GATES)
    opt.step()
    assert bool(opt.last_step()) == record.projected


@each_projected
def test_groups_on_several_backends(record: Record) -> None:
    """Each backend steps one group; the statistics cover all groups."""
    params = [values((6, 10), torch.float32, 1) for _ in BACKENDS]
    groups = [{"params": [p], "backend": backend} for p, backend in zip(params, BACKENDS, strict=True)]
    opt = record.make(groups, **record.typical)
    for p in params:
        p.grad = gradient("layer", p, 2)
    opt.step()
    last = opt.last_step()
    assert list(map(id, last.params)) == list(map(id, params))
    assert last.gate.tolist() == [onepass.GATES.index("layer")] * len(params)
    assert last.g_norm.tolist() == pytest.approx([float(params[0].grad.norm())] * len(params), rel=1e-5)
    assert {verdict.gate for verdict in last.values()} == {"layer"}


# ------------------------------------------------------------------ cost


class Reads:
    """Counts the calls that make the host wait for a number of the device."""

    NAMES = ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count = 0
        for name in self.NAMES:
            monkeypatch.setattr(Tensor, name, self.counted(getattr(Tensor, name)))

    def counted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return method(*args, **kwargs)

        return call


@each_backend
@each_projected
def test_host_waits_only_when_it_reads(record: Record, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opt = stepped(record, backend)
    reads = Reads(monkeypatch)
    last = opt.last_step()
    sums = [getattr(last, name).sum() for name in TENSORS]
    assert len(last) and last.params[0] in last and repr(last)
    assert reads.count == 0
    for verdict in last.values():
        assert verdict.gate in onepass.GATES
    assert last.flat() and last == dict(last)
    assert reads.count == 1
    assert float(sums[0]) > 0
    assert reads.count == 2, "the counter sees a read"


class Written(TorchDispatchMode):
    """Counts the bytes that torch's operations write."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.bytes += sum(t.nbytes for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
        return out


@each_backend
@each_projected
def test_copies_a_few_numbers_only(record: Record, backend: str) -> None:
    """A few numbers are copied for a parameter of any size, and no kernel is launched."""
    p = values((512, 64), torch.float32, 1)
    opt = record.make([p], **{**record.typical, "backend": backend})
    p.grad = gradient("channel", p, 2)
    opt.step()
    emulated_backend.emulated.reset()
    with Written() as written:
        last = opt.last_step()
        assert last.flat()
    assert 0 < written.bytes < 512 < p.nbytes
    assert emulated_backend.emulated.launches() == []


@each_backend
@each_projected
def test_last_step_is_a_snapshot(record: Record, backend: str) -> None:
    """Also the part that is read only after another step."""
    opt = stepped(record, backend)
    last, same = opt.last_step(), opt.last_step()
    kept = {name: getattr(last, name).clone() for name in TENSORS}
    before = list(same.values())
    feed(opt, ("none", "none", "channel", "none", "layer"), 30)
    opt.step()
    assert opt.last_step() != same
    for name in TENSORS:
        assert torch.equal(getattr(last, name), kept[name]), name
    assert list(last.values()) == before


# ------------------------------------------------------------------ logging


def test_example_watch_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of examples/watch_gates.py."""
    examples = ROOT / "examples"
    monkeypatch.syspath_prepend(str(examples))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("sys.argv", ["watch_gates.py", str(tmp_path / "gates.png")])
    digits = importlib.import_module("demo_data").Digits
    every = digits.batches
    monkeypatch.setattr(digits, "batches", lambda *args, **kwargs: itertools.islice(every(*args, **kwargs), 3))
    seen = runpy.run_path(str(examples / "watch_gates.py"))
    assert len(seen["steps"]) == 3 and seen["names"] == [f"{i}.weight" for i in (0, 3, 6, 9, 14)]
    assert (tmp_path / "gates.png").read_bytes().startswith(b"\x89PNG")


def test_flat_dict() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    opt = onepass.AdamP(model.parameters(), lr=0.1, backend="reference")
    model(torch.randn(3, 8)).sum().backward()
    opt.step()
    last = opt.last_step()
    numbers = last[model[1].weight]
    flat = last.flat(model.named_parameters())
    assert list(flat)[:5] == [f"0.weight/{name}" for name in TENSORS]
    assert {name: number for name, number in flat.items() if name.startswith("1.weight")} == {
        "1.weight/gate": float(onepass.GATES.index(numbers.gate)),
        "1.weight/cosine": numbers.cosine,
        "1.weight/p_norm": numbers.p_norm,
        "1.weight/g_norm": numbers.g_norm,
        "1.weight/corrected": 0.0,
        "1.weight/settled": 0.0,
    }
    assert len(flat) == 2 * (len(TENSORS) + 1) and all(type(number) is float for number in flat.values())


def named(parameters: Any) -> LastStep:
    """last_step() of an optimizer that was given parameters in this way."""
    opt = onepass.SGDP(parameters, lr=0.1, backend="reference")
    for p in params_of(opt):
        p.grad = torch.ones_like(p)
    opt.step()
    return opt.last_step()


def test_names_in_flat_dict() -> None:
    a, b = (values((2, 3), torch.float32, seed) for seed in range(2))
    vector = values((3,), torch.float32, 0)

    def names(last: LastStep, *given: Any) -> list[str]:
        return [name.removesuffix("/gate") for name in last.flat(*given) if name.endswith("/gate")]

    unnamed = named([{"params": [a]}, {"params": [vector, b]}])
    assert names(unnamed) == ["group0.param0", "group1.param1"]
    assert names(unnamed, [("of b", b)]) == ["group0.param0", "of b"]
    own = named([{"params": [("first", a)]}, {"params": [("bias", vector), ("second", b)]}])
    assert names(own) == ["first", "second"]
    assert names(own, {"of a": a}.items()) == ["of a", "second"]
    twice = named([{"params": [("weight", a)]}, {"params": [("bias", vector), ("weight", b)]}])
    assert names(twice) == ["group0.weight", "group1.weight"]


def test_lookup_of_an_unprojected_parameter() -> None:
    vector = values((3,), torch.float32, 0)
    last = named([{"params": [values((2, 3), torch.float32, 0), vector]}])
    with pytest.raises(KeyError, match="no gate was decided for this parameter at the last step"):
        last[vector]


@each_backend
@each_projected
def test_last_step_is_the_last_one_taken(record: Record, backend: str) -> None:
    """Clippings, skipped and rejected steps, and changes of state or groups keep the parameters and statistics of that step."""
    opt = make(record, backend)
    p, q = params_of(opt)[0], values((4, 6), torch.float32, 1)
    feed(opt, GATES)
    opt.clip_grad_norm_(1.0)
    assert len(opt.last_step()) == 0
    opt.step()
    want, params = opt.last_step().flat(), opt.last_step().params

    def same() -> bool:
        last = opt.last_step()
        return last.flat() == want and all(a is b for a, b in zip(last.params, params, strict=True))

    feed(opt, GATES[1:] + GATES[:1])
    opt.clip_grad_norm_(1.0)
    assert same(), "a clipping"
    opt.found_inf = torch.tensor(1.0)
    opt.step()
    del opt.found_inf
    assert same(), "a step that a gradient scaler has skipped"
    p.grad = None
    opt.zero_grad()
    assert same() and p in opt.last_step(), "gradients that are gone"
    p.grad = torch.ones(p.shape[1:]).expand_as(p)
    with pytest.raises(ValueError, match="expanded"):
        opt.step()
    with pytest.raises(ValueError, match="expanded"):
        opt.clip_grad_norm_(1.0)
    assert same(), "a step that was refused"
    p.grad = None
    opt.load_state_dict(opt.state_dict())
    assert same(), "another state"
    opt.add_param_group({"params": [q]})
    assert same(), "another group"
    opt.step()
    assert len(opt.last_step()) == 0, "a step of nothing"
    q.grad = gradient("layer", q, 2)
    opt.step()
    assert [id(x) for x in opt.last_step()] == [id(q)] and opt.last_step()[q].gate == "layer"
    opt.param_groups.pop()
    assert next(iter(opt.last_step().flat())) == "removed0/gate"


@pytest.mark.parametrize("backend", [name for name in COMPILED if name != "cpu"])
@each_projected
def test_steps_that_the_device_skips(record: Record, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped steps, also of other parameters than the steps before, and before any was taken. The host waits when it asks
    the device, so it asks only where that makes a difference."""
    monkeypatch.setattr(onepass.scaling.Scaling, "known_to_skip", False)
    opt = make(record, backend)
    params = params_of(opt)
    reads, waits = Reads(monkeypatch), []

    def after(gates: tuple[str, ...], skipped: float | None, missing: int | None = None) -> list[str]:
        feed(opt, gates)
        if missing is not None:
            params[missing].grad = None
        if skipped is not None:
            opt.found_inf, opt.grad_scale = torch.tensor(skipped), torch.tensor(1.0)
        opt.step()
        if skipped is not None:
            del opt.found_inf, opt.grad_scale
        before = reads.count
        last = opt.last_step()
        waits.append(reads.count - before)
        return [f"{next(i for i, p in enumerate(params) if p is q)} {verdict.gate}" for q, verdict in last.items()]

    first, second = ("channel",) * 5, ("none",) * 5
    assert after(first, 1.0) == after(second, 1.0, missing=0) == []
    assert after(first, 0.0) == ["0 channel", "2 channel", "4 channel"]
    assert after(second, 1.0) == ["0 channel", "2 channel", "4 channel"]
    assert after(second, 1.0, missing=0) == ["0 channel", "2 channel", "4 channel"]
    assert after(second, 0.0, missing=2) == ["0 none", "4 none"]
    assert after(first, None) == ["0 channel", "2 channel", "4 channel"]
    assert after(second, 0.0) == ["0 none", "2 none", "4 none"]
    assert [bool(n) for n in waits] == [True, True, True, False, True, True, False, False]
    for _ in range(20):
        opt.found_inf = torch.tensor(0.0)
        opt.step()
    (decided,) = [bound.decided for bound in opt._execution.backends]
    assert len(decided.steps) == 1


@pytest.mark.parametrize("backend", [name for name in COMPILED if name != "cpu"])
@each_projected
def test_read_after_device_skipped_steps(record: Record, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last step taken of any three, taken or skipped, of all parameters or of fewer, read at the end only."""
    monkeypatch.setattr(onepass.scaling.Scaling, "known_to_skip", False)
    kinds = [(skipped, missing) for skipped in (0.0, 1.0) for missing in (None, 0)]
    for steps in itertools.product(kinds, repeat=3):
        opt = make(record, backend, shapes=((2, 20), (3, 20)))
        params = params_of(opt)
        want: list[int] = []
        for skipped, missing in ((0.0, None), *steps):
            feed(opt, ("channel",) * 2)
            if missing is not None:
                params[missing].grad = None
            opt.found_inf, opt.grad_scale = torch.tensor(skipped), torch.tensor(1.0)
            opt.step()
            if not skipped:
                want = [0, 1] if missing is None else [1]
        found = [next(i for i, p in enumerate(params) if p is q) for q in opt.last_step()]
        assert found == want, steps


@each_projected
def test_copies_have_no_last_step(record: Record) -> None:
    """Nor has an optimizer that has loaded a state dict."""
    opt, other = stepped(record, "cpu"), make(record, "cpu")
    other.load_state_dict(opt.state_dict())
    assert not other.last_step() and not copy.deepcopy(opt).last_step() and opt.last_step()


@each_backend
@each_projected
def test_meta_tensors(record: Record, backend: str) -> None:
    """They have no gate statistics, but are stepped and clipped, as by torch's optimizers."""
    p, meta = values((4, 6), torch.float32, 1), torch.empty(4, 6, device="meta")
    opt = record.make([{"params": [meta], "backend": "reference"}], **{**record.typical, "backend": backend})
    for _ in range(2):
        meta.grad = torch.empty_like(meta)
        opt.step()
        assert not opt.last_step() and opt.last_step().flat() == {}
    assert opt.clip_grad_norm_(1.0).is_meta
    opt.step()
    assert float(opt.state[meta].get("step", 3)) == 3
    opt.add_param_group({"params": [p]})
    p.grad = gradient("layer", p, 2)
    opt.step()
    assert opt.last_step().params == [p] and opt.last_step()[p].gate == "layer"
    opt.load_state_dict(opt.state_dict())
    opt.step()
    assert opt.last_step().params == [p]


def test_a_skip_that_a_backend_finds_keeps_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for parameters of the reference whose found_inf is on another device."""
    record = RECORDS["AdamP"]
    opt = train(record.make(parameters(), backend="reference", **record.typical), range(2))
    before = dict(opt.last_step())
    monkeypatch.setattr(Scaling, "known_to_skip", property(lambda scaling: False))
    opt.found_inf = torch.tensor(1.0)
    train(opt, [2])
    assert before and dict(opt.last_step()) == before
