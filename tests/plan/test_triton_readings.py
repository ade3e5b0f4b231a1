"""What the Triton backend reads of its tensors at every step: all at once while nothing changes, and every change is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import onepass
from compare import assert_same_state
from drive import parameters_of, train
from onepass.backend import compiled, direct_reads
from onepass.backend.triton import readings
from onepass.backend.triton.bound_param import BoundParam
from oracles import Arguments
from records import RECORDS
from tensors import values

SHAPES = [(6, 20), (12,), (4, 4)]


@pytest.fixture(params=["directly", "through the table", "python"], autouse=True)
def describer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Descriptions of the compiled module, for a torch that fails the proof of direct reads too, and of Python in its absence."""
    if request.param == "through the table":
        monkeypatch.setattr(direct_reads, "FOUND", {})
    if request.param == "python":
        monkeypatch.setattr(compiled, "unavailable", lambda: "The compiled module is missing.")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[BoundParam]:
    """The parameters that were read one by one."""
    read: list[BoundParam] = []
    own = BoundParam.read

    def noted(self: BoundParam, *arguments: Any) -> bool:
        read.append(self)
        return own(self, *arguments)

    monkeypatch.setattr(BoundParam, "read", noted)
    return read


def make(name: str = "AdamP", steps: int = 3, **arguments: Any) -> Any:
    params = [values(shape, torch.float32, i) for i, shape in enumerate(SHAPES)]
    return train(RECORDS[name].make(params, backend="triton", **{**RECORDS[name].typical, **arguments}), range(steps))


def feed(opt: Any, time: int, move: Callable[[Tensor], Tensor] = lambda g: g) -> None:
    for i, p in enumerate(parameters_of(opt)):
        p.grad.copy_(values(p.shape, p.dtype, 7 * time + i))
        p.grad = move(p.grad)


@pytest.mark.parametrize(("name", "arguments"), [("AdamP", {}), ("AdamP", {"capturable": True}), ("SGD", {})])
def test_nothing_is_read_one_by_one_while_nothing_changes(
    reads: list[BoundParam], name: str, arguments: Arguments
) -> None:
    opt, other = make(name, **arguments), make(name, **arguments)
    feed(opt, 3)
    opt.step()
    reads.clear()
    for time in range(4, 7):
        opt.param_groups[0]["lr"] /= 2
        feed(opt, time)
        opt.step()
    assert not reads
    for time in range(3, 7):
        other.param_groups[0]["lr"] /= 1 if time == 3 else 2
        feed(other, time, torch.clone)
        other._execution.backends[0].readings.forget()
        other.step()
    assert_same_state(opt, other)


def test_gradients_that_have_moved(reads: list[BoundParam]) -> None:
    """New gradients of the same layout are not read one by one either."""
    opt, other = make(), make()
    reads.clear()
    kept = []
    for time in range(3, 6):
        kept.append([p.grad for p in parameters_of(opt)])  # so that the new ones are elsewhere
        feed(opt, time, torch.clone)
        opt.step()
        for g in kept[-1]:
            g.fill_(torch.nan)
    assert not reads
    for time in range(3, 6):
        feed(other, time)
        other._execution.backends[0].readings.forget()
        other.step()
    assert_same_state(opt, other)


def test_a_plan_made_after_gradients_have_moved() -> None:
    """It has the addresses of the last step, and not those of when the gradients were read one by one."""
    opt, other = make("AdamW"), make("AdamW")
    kept = []
    for time in range(3, 5):
        for each in (opt, other):
            kept.append([p.grad for p in parameters_of(each)])
            feed(each, time, torch.clone if each is opt else lambda g: g)
            if time == 4:
                each.state[parameters_of(each)[1]]["step"].fill_(70.0)  # another bucket
            each.step()
    assert_same_state(opt, other)


def test_gradients_that_move_before_the_launch() -> None:
    """A step that the host knows to be skipped reads, and launches nothing; the next has its gradients elsewhere."""
    opt, other = make(), make()
    for each in (opt, other):
        each._execution.backends[0].readings.forget()
        each._make_ready(scaled=False, needs_state=False)
        each._execution.backends[0].release_gradients()
    old = [p.grad for p in parameters_of(opt)]
    feed(opt, 3, torch.clone)
    feed(other, 3)
    for g in old:
        g.fill_(torch.nan)
    opt.step()
    other.step()
    assert_same_state(opt, other)


def test_a_gradient_that_is_no_longer_aligned() -> None:
    opt = make()
    (backend,) = opt._execution.backends
    assert all(desc.aligned for desc in backend.tables.structure)
    p = parameters_of(opt)[0]
    p.grad = torch.zeros(p.numel() + 1)[1:].view_as(p)
    opt.step()
    assert [desc.aligned for desc in backend.tables.structure] == [False, True, True]


def _rename(opt: Any) -> None:
    own = opt.state[parameters_of(opt)[0]]
    own["counter"] = own.pop("gate_counter")


def _other_state(opt: Any) -> None:
    p = parameters_of(opt)[0]
    opt.state[p] = dict(opt.state[p])


def _transposed(t: Tensor) -> Tensor:
    return t.detach().t()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "no gradient": lambda opt: setattr(parameters_of(opt)[1], "grad", None),
    "a negated gradient": lambda opt: setattr(
        parameters_of(opt)[0], "grad", torch._neg_view(parameters_of(opt)[0].grad)
    ),
    "a gradient of other strides": lambda opt: setattr(
        parameters_of(opt)[2], "grad", _transposed(parameters_of(opt)[2].grad)
    ),
    "a parameter elsewhere": lambda opt: setattr(parameters_of(opt)[0], "data", parameters_of(opt)[0].data.clone()),
    "a parameter of other strides": lambda opt: setattr(
        parameters_of(opt)[2], "data", _transposed(parameters_of(opt)[2].data)
    ),
    "a moment elsewhere": lambda opt: opt.state[parameters_of(opt)[0]].update(exp_avg=torch.zeros(6, 20)),
    "the data of a moment": lambda opt: opt.state[parameters_of(opt)[0]]["exp_avg"].set_(torch.zeros(6, 20)),
    "a moment of another dtype": lambda opt: opt.state[parameters_of(opt)[0]].update(
        exp_avg=torch.zeros(6, 20, dtype=torch.float64)
    ),
    "a step count": lambda opt: opt.state[parameters_of(opt)[0]].update(step=torch.tensor(3.0)),
    "a renamed entry": _rename,
    "another state": _other_state,
    "no state": lambda opt: opt.state.pop(parameters_of(opt)[0]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change: str) -> None:
    opt = make(steps=4)
    (backend,) = opt._execution.backends
    known = backend.readings
    assert known.compare(known.wanted, True) == "same"
    CHANGES[change](opt)
    assert known.compare(known.wanted, True) == "unknown"


def test_missing_state_is_seen_before_a_step() -> None:
    """A clipping needs no state, the step after it does."""
    params = [values(shape, torch.float32, i) for i, shape in enumerate(SHAPES)]
    opt = onepass.AdamP(params, backend="triton")
    for p in params:
        p.grad = torch.ones_like(p)
    opt.clip_grad_norm_(1.0)
    (backend,) = opt._execution.backends
    known = backend.readings
    assert known.compare(known.wanted, False) == "same" and known.compare(known.wanted, True) == "unknown"
    opt.step()
    assert all(opt.state[p] for p in params)


def test_both_descriptions_name_the_same_addresses() -> None:
    opt = make()
    params = parameters_of(opt)
    found = readings.Readings(opt._execution.backends[0].bound, opt.state)
    found.keep([], True)
    assert found.addresses().tolist() == [p.grad.data_ptr() for p in params]


@pytest.mark.parametrize("wrong", [{"float32": "float16", "float16": "float32"}, {"sizes": "strides"}])
def test_a_proof_that_does_not_hold_for_what_is_read(
    wrong: dict[str, str], describer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever tensors are read one by one, direct reads are compared with the table, and given up where they differ."""
    if compiled.unavailable() or not direct_reads.FOUND:
        pytest.skip("nothing is read directly")
    monkeypatch.setattr(
        direct_reads, "FOUND", direct_reads.FOUND | {key: direct_reads.FOUND[x] for key, x in wrong.items()}
    )
    assert compiled._C is not None
    opt = make()
    known, params = opt._execution.backends[0].readings, parameters_of(opt)
    through_the_table = compiled._C.Reader({}).describe(params, opt.state)
    assert compiled._C.Reader(direct_reads.FOUND).describe(params, opt.state) != through_the_table
    assert known.describe() == through_the_table
