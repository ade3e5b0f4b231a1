"""Every error of a step: its message, and that nothing is written before it is raised.

A case breaks something in an optimizer that has stepped before. It does so in the second group: if not all checks came first,
the first group would already be stepped.
"""

from __future__ import annotations

import ast
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

import onepass
from compare import Snapshot, assert_same_bits, assert_same_state
from drive import feed, parameters, parameters_of, train
from error_cases import CASES, GROUP, Case
from records import RECORDS, Record, each_backend, each_optimizer
from tensors import values

each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def _optimizer(record: Record, backend: str) -> Any:
    groups = [{"params": parameters(shapes=[(4, 6), (5,)])} for _ in range(2)]
    groups[1]["params"].reverse()
    return train(record.make(groups, backend=backend, **record.typical), range(2))


def _error(case: Case, backend: str, clips: bool = False) -> tuple[BaseException, Snapshot]:
    opt = _optimizer(RECORDS[case.record], backend)
    feed(opt, 2)
    group = opt.param_groups[1]
    case.spoil(opt, group, group["params"][1])
    before = Snapshot(opt)
    with pytest.raises(case.kind) as caught:
        opt.clip_grad_norm_(1.0) if clips else opt.step()
    return caught.value, before


@each_backend
@each_case
def test_message_and_nothing_written(backend: str, case: Case) -> None:
    error, before = _error(case, backend)
    before.assert_unchanged()
    assert type(error) is case.kind
    for words in (case.about, *case.words):
        assert words in str(error)


@each_backend
@each_case
def test_clipping_raises_the_same_errors(backend: str, case: Case) -> None:
    error, before = _error(case, backend, clips=True)
    before.assert_unchanged()
    assert type(error) is case.kind
    for words in (case.about, *case.words):
        assert words in str(error)


@pytest.mark.parametrize(
    ("shape", "strides"), [((2, 2), (4, 3)), ((2, 3), (1, 2)), ((3, 2, 2), (4, 1, 2)), ((2, 1, 3), (3, 0, 1))]
)
def test_adjacent_elements_do_not_overlap(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    """The smallest strides at which no two elements share memory are accepted."""
    p = torch.arange(99.0).as_strided(shape, strides, 1)
    addresses = torch.arange(99).as_strided(shape, strides, 1)
    assert addresses.unique().numel() == addresses.numel()
    q = p.clone()
    for each in (p, q):
        each.grad = torch.ones(shape)
        onepass.AdamW([each], lr=0.1, weight_decay=0.3).step()
    assert_same_bits(p, q, "strided")


@each_backend
@each_optimizer
def test_the_step_after_an_error(backend: str, record: Record) -> None:
    """A refused step has no effect on the next one."""
    opt, other = (_optimizer(record, backend) for _ in range(2))
    feed(opt, 2)
    p = opt.param_groups[1]["params"][1]
    p.grad = torch.ones(6).expand(4, 6)
    for _ in range(2):
        with pytest.raises(ValueError, match="its gradient is expanded"):
            opt.step()
    for each in (opt, other):
        train(each, [2])
    for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
        assert_same_bits(p, q, "parameter")
        for key, value in other.state.get(q, {}).items():
            assert_same_bits(opt.state[p][key], value, key)


@each_backend
@pytest.mark.parametrize("case", [c for c in CASES if c.about == GROUP], ids=lambda c: c.name)
def test_add_param_group_refuses_the_same(backend: str, case: Case) -> None:
    """A group that cannot be stepped cannot be added, and the optimizer is unchanged."""
    opt = _optimizer(RECORDS[case.record], backend)
    group: dict[str, Any] = {"params": [values((4, 6), torch.float32, 1), values((4, 6), torch.float32, 2)]}
    case.spoil(opt, group, group["params"][1])
    with pytest.raises(case.kind, match="group 2"):
        opt.add_param_group(group)
    assert len(opt.param_groups) == 2
    train(opt, [2])


@each_backend
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize("clips", [False, True])
def test_a_step_in_fake_tensor_mode(backend: str, steps: int, clips: bool) -> None:
    """Of real tensors: nothing is written, no state is made, and the optimizer steps as before outside of the mode."""
    record = RECORDS["AdamP"]
    opt, other = (train(record.make(parameters(), backend=backend, **record.typical), range(steps)) for _ in range(2))
    feed(opt, steps)
    before = Snapshot(opt)
    with FakeTensorMode(), pytest.raises(RuntimeError, match=r"in torch's FakeTensorMode.*; step outside of it"):
        opt.clip_grad_norm_(1.0) if clips else opt.step()
    before.assert_unchanged()
    for each in (opt, other):
        train(each, [steps])
    assert_same_state(opt, other)


def _raises_of(file: Path) -> set[tuple[str, int, int]]:
    """First and last line of every `raise` in a file."""
    statements = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Raise))
    return {(file.name, node.lineno, node.end_lineno or node.lineno) for node in statements}


def test_every_raise_is_hit() -> None:
    """The cases reach each `raise` of these files; those of registry.py are in test_backends.py too."""
    package = Path(onepass.__file__).parent
    raises = set().union(*(_raises_of(package / name) for name in ("checks.py", "hyperparams.py", "values.py")))
    last = [traceback.extract_tb(_error(case, "reference")[0].__traceback__)[-1] for case in CASES]
    hit = {(Path(frame.filename).name, frame.lineno or 0) for frame in last}
    missed = [at for at in sorted(raises) if not any((at[0], line) in hit for line in range(at[1], at[2] + 1))]
    assert raises
    assert not missed
