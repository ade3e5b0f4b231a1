"""Many param groups: the work for each does not grow with their number. Counted, not timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import onepass
from compare import assert_same_state
from drive import parameters, parameters_of, train
from records import RECORDS, Record, each_optimizer

checks = importlib.import_module("onepass.checks")
GROUPS = 12


def groups(n: int = GROUPS, **options: Any) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2, 3))], **options} for _ in range(n)]


class Watched(list):
    """Groups, or parameters of a group, with the number of iterations over them."""

    times = 0

    def __iter__(self) -> Iterator[Any]:
        self.times += 1
        return super().__iter__()


def counted(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], Any]) -> int:
    """How often `work` calls a function of checks.py."""
    calls, function = [0], getattr(checks, name)

    def counting(*arguments: Any) -> Any:
        calls[0] += 1
        return function(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(checks, name, counting)
        work()
    return calls[0]


@each_optimizer
def test_each_parameter_is_checked_once(monkeypatch: pytest.MonkeyPatch, record: Record) -> None:
    """By the constructor, or when its group is added. `overlaps` is called for every parameter that passes."""
    made: list[Any] = []
    at_start = counted(monkeypatch, "overlaps", lambda: made.append(record.make(groups(), lr=0.1)))
    assert at_start == GROUPS
    added = counted(monkeypatch, "overlaps", lambda: [made[0].add_param_group(group) for group in groups()])
    assert added == GROUPS
    assert len(made[0].param_groups) == 2 * GROUPS


@pytest.mark.parametrize("name", ["AdamW", "AdamP"])
def test_add_param_group_does_not_iterate_over_others(name: str) -> None:
    """Nor does torch's own check that no parameter is in two groups."""
    opt = RECORDS[name].make(groups(), lr=0.1)
    for group in opt.param_groups:
        group["params"] = Watched(group["params"])
    opt.param_groups = Watched(opt.param_groups)
    for group in groups():
        opt.add_param_group(group)
    assert opt.param_groups.times == 0
    assert [group["params"].times for group in opt.param_groups[:GROUPS]] == [0] * GROUPS


@each_optimizer
def test_added_groups_equal_given_groups(record: Record) -> None:
    given = [{"params": [p]} for p in parameters()]
    at_once = record.make(given, **record.typical)
    one_by_one = record.make([{"params": parameters()[:1]}], **record.typical)
    for p in parameters()[1:]:
        one_by_one.add_param_group({"params": [p]})
    assert_same_state(train(one_by_one, range(3)), train(at_once, range(3)))
    assert one_by_one.state_dict()["param_groups"] == at_once.state_dict()["param_groups"]


# ------------------------------------------------------------------ a parameter in two groups


def _unpickled(opt: Any) -> Any:
    other = onepass.AdamW([nn.Parameter(torch.zeros(1))])
    other.__setstate__(opt.__getstate__())
    return other


@pytest.mark.parametrize("at", [0, 5, GROUPS - 1])
@pytest.mark.parametrize("through", [lambda opt: opt, _unpickled], ids=["as made", "restored"])
def test_parameter_of_an_earlier_group(at: int, through: Any) -> None:
    opt = through(onepass.AdamW(groups()))
    p = opt.param_groups[at]["params"][0]
    for number in (GROUPS, GROUPS + 1):
        with pytest.raises(ValueError, match=rf"^parameter 1 of group {number}, shape \(2, 3\): was given twice"):
            opt.add_param_group({"params": [nn.Parameter(torch.ones(1)), p]})
        assert len(opt.param_groups) == number
        opt.add_param_group(*groups(1))


def test_parameter_of_a_removed_group() -> None:
    """Users may remove groups by hand."""
    opt = onepass.AdamW(groups())
    gone = opt.param_groups.pop(3)
    opt.add_param_group({"params": gone["params"]})
    train(opt, range(2))
    with pytest.raises(ValueError, match="was given twice"):
        opt.add_param_group({"params": gone["params"]})


def test_parameter_added_by_hand() -> None:
    """The next step raises before it writes."""
    opt = onepass.AdamW(groups())
    p = nn.Parameter(torch.ones(3))
    opt.param_groups[2]["params"].append(p)
    opt.add_param_group({"params": [p]})
    with pytest.raises(ValueError, match="was given twice"):
        train(opt, [0])
    assert all(torch.equal(q, torch.ones_like(q)) for q in parameters_of(opt))


# ------------------------------------------------------------------ errors of torch


@pytest.mark.parametrize(
    ("named", "wrong", "kind", "words"),
    [
        (True, {"params": [nn.Parameter(torch.ones(1))]}, ValueError, "with/without names"),
        (False, {"params": [("a", nn.Parameter(torch.ones(1)))]}, ValueError, "with/without names"),
        (False, {"params": {nn.Parameter(torch.ones(1))}}, TypeError, "ordered collections"),
        (False, {"params": [nn.Parameter(torch.ones(1)) * 2]}, ValueError, "non-leaf"),
        (False, {"params": ["a"]}, TypeError, "can only optimize Tensors"),
        (False, [], TypeError, "must be a dict"),
    ],
)
def test_errors_of_torch(named: bool, wrong: Any, kind: type[Exception], words: str) -> None:
    params = [
        {"params": [(str(i), group["params"][0])] if named else group["params"]} for i, group in enumerate(groups())
    ]
    opt = onepass.AdamW(params)
    with pytest.raises(kind, match=words):
        opt.add_param_group(wrong)
    assert len(opt.param_groups) == GROUPS
    train(opt, range(2))
