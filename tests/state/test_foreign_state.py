"""Foreign entries in an optimizer's state, e.g. of hooks: steps ignore them, copies and checkpoints keep them."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import defaultdict
from typing import Any

import pytest
import torch

from compare import assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, through_a_file, train
from records import Record, each_backend, each_compiled, each_optimizer
from tensors import values


def foreign(record: Record) -> dict[str, Any]:
    """Foreign entries for the state of a parameter."""
    own: dict[str, Any] = {"text": "abc", "ids": torch.arange(3), "wide": torch.ones(2, dtype=torch.float64)}
    own["nested"] = {"pair": (torch.tensor(2.0), "x"), "none": None}
    if not record.name.startswith("Adam"):
        own["step"] = 3  # foreign only for rules without a step count
    if not record.projected:
        own["gate_counter"] = "mine"
    return own


def entries_of(opt: Any, record: Record) -> list[dict[str, Any]]:
    return [{key: opt.state[p][key] for key in foreign(record)} for p in parameters_of(opt)]


def add_foreign(opt: Any, record: Record) -> None:
    opt.state["a hook"] = 1
    for p in parameters_of(opt):
        opt.state[p].update(foreign(record))


def without(opt: Any, record: Record) -> Any:
    """The optimizer, after its foreign entries are deleted."""
    for key in [key for key in opt.state if not isinstance(key, torch.Tensor)]:
        del opt.state[key]
    for own in opt.state.values():
        for key in foreign(record):
            own.pop(key, None)
    for p in [p for p, own in opt.state.items() if not own]:
        del opt.state[p]
    return opt


@each_backend
@each_optimizer
def test_steps_ignore_foreign_entries(backend: str, record: Record) -> None:
    """Plain, clipped, scaled and skipped steps; the entries precede the state and change between steps."""
    plain, opt = (record.make(parameters(), backend=backend, **record.typical) for _ in range(2))
    add_foreign(opt, record)
    elsewhere = torch.ones(3)
    opt.state[elsewhere] = {"step": torch.tensor(7.0), "exp_avg": "theirs"}

    def another_count(*_: Any) -> None:
        opt.state["a hook"] += 1
        opt.state[parameters_of(opt)[0]]["text"] = [opt.state["a hook"]]

    opt.register_step_post_hook(another_count)
    for each in (plain, opt):
        train(each, range(2))
        feed(each, 2)
        each.clip_grad_norm_(0.5)
        each.step()
        each.found_inf, each.grad_scale = torch.tensor(1.0), torch.tensor(2.0)
        train(each, [3])
        each.found_inf = torch.tensor(0.0)
        train(each, [4])
        del each.found_inf, each.grad_scale
        train(each, [5])
    assert opt.state["a hook"] == 7
    assert opt.state[elsewhere]["step"] == 7 and opt.state[elsewhere]["exp_avg"] == "theirs"
    del opt.state[elsewhere]
    assert_same_state(without(opt, record), plain)


@each_backend
@each_optimizer
@pytest.mark.parametrize("how", ["state dict", "deepcopy", "pickle"])
def test_copies_keep_foreign_entries(backend: str, record: Record, how: str) -> None:
    """Bits and dtypes are kept. (On loading, torch's own optimizers turn a string into the repr of a generator.)"""
    opt = record.make(parameters(torch.bfloat16), backend=backend, **record.typical)
    add_foreign(opt, record)
    train(opt, range(2))
    if how == "state dict":
        other = record.make([p.detach().clone() for p in parameters_of(opt)], backend=backend, **record.typical)
        other.load_state_dict(through_a_file(opt.state_dict()))
    else:
        other = copy.deepcopy(opt) if how == "deepcopy" else pickle.loads(pickle.dumps(opt))
    assert other.state["a hook"] == 1
    assert repr(entries_of(other, record)) == repr(entries_of(opt, record)) != repr([])
    mine, theirs = (each.state[parameters_of(each)[0]]["wide"] for each in (opt, other))
    mine.add_(1)
    assert theirs.tolist() == [1.0, 1.0], "a copy of its own"
    assert_same_state(without(train(other, [2]), record), without(train(opt, [2]), record))


@each_backend
@each_optimizer
def test_entries_before_the_first_step(backend: str, record: Record) -> None:
    """Foreign entries are saved and loaded without other state; a clipping adds nothing to the state dict."""
    opt, other = (record.make(parameters(), backend=backend, **record.typical) for _ in range(2))
    add_foreign(opt, record)
    feed(opt, 0)
    opt.clip_grad_norm_(1.0)
    saved = opt.state_dict()
    assert saved["state"].keys() == {"a hook", *range(len(parameters_of(opt)))}
    assert [own.keys() for i, own in saved["state"].items() if i != "a hook"] == [foreign(record).keys()] * 6
    other.load_state_dict(saved)
    opt.zero_grad()
    assert_same_state(without(train(other, [0]), record), without(train(opt, [0]), record))


@each_compiled
@each_optimizer
def test_foreign_entries_cause_no_rebinding(backend: str, record: Record) -> None:
    """Foreign entries cause no new binding, which a CUDA graph would not allow, and replaced ones are freed."""
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(2))
    (bound,) = opt._execution.backends
    p = parameters_of(opt)[0]
    opt.state["a hook"], opt.state[p]["mine"] = 1, torch.ones(3)
    old = weakref.ref(opt.state[p]["mine"])
    train(opt, [2])
    opt.state["a hook"], opt.state[p]["mine"] = 2, torch.ones(3)
    train(opt, [3])
    del opt.state["a hook"], opt.state[p]["mine"]
    train(opt, [4])
    gc.collect()
    assert old() is None
    assert opt._execution.backends == [bound]


# ------------------------------------------------------------------ the whole state


@each_backend
@each_optimizer
def test_replaced_state_dict(backend: str, record: Record) -> None:
    """`opt.state = defaultdict(dict)` restarts a run."""
    opt = train(record.make(parameters(), backend=backend, **record.typical), range(3))
    new = record.make([p.detach().clone() for p in parameters_of(opt)], backend=backend, **record.typical)
    opt.state = defaultdict(dict)
    assert_same_state(train(opt, range(3)), train(new, range(3)))


@each_backend
@each_optimizer
def test_a_refused_step_makes_no_entry(backend: str, record: Record) -> None:
    """The first gradient of a parameter comes at a later step and is refused."""
    p, q = parameters(shapes=[(4, 6), (5, 3)])
    opt = record.make([p, q], backend=backend, **record.typical)
    p.grad = values(p.shape, p.dtype, 1)
    opt.step()
    q.grad = torch.ones(3).expand(5, 3)
    before = {key: dict(own) for key, own in opt.state.items()}
    with pytest.raises(ValueError, match="expanded"):
        opt.step()
    assert opt.state.keys() == before.keys() and q not in opt.state
    q.grad = None
    opt.step()
    assert_same_bits(q, parameters(shapes=[(4, 6), (5, 3)])[1], "without a gradient")


@each_backend
@each_optimizer
def test_a_tuple_of_parameters(backend: str, record: Record) -> None:
    """torch makes `params` a list when a group is added; user code may replace it by a tuple."""
    opt, plain = (train(record.make(parameters(), backend=backend, **record.typical), range(2)) for _ in range(2))
    opt.param_groups[0]["params"] = tuple(opt.param_groups[0]["params"])
    assert_same_state(train(opt, [2]), train(plain, [2]))
