"""Checkpoints saved from, and loaded into, optimizers with capturable=True."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from capturable import make, moved, on_device, with_betas, write
from compare import assert_same_state
from drive import parameters_of, through_a_file, train
from oracles import Arguments
from records import RECORDS, Record, each_variant


def loaded(opt: Any, record: Record, **arguments: Any) -> Any:
    """A new optimizer on copies of the parameters, from a checkpoint of `opt`."""
    params = [p.detach().clone() for p in parameters_of(opt)]
    other = record.make(params, backend="emulated", **arguments)
    other.load_state_dict(through_a_file(opt.state_dict()))
    return other


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("source", [False, True])
@each_variant
def test_checkpoints(source: bool, target: bool, record: Record, arguments: Arguments) -> None:
    """A resumed run equals the uninterrupted one. `capturable` comes from the optimizer, not from the checkpoint."""
    opt = train(make(record, capturable=source, **arguments), range(3))
    other = loaded(opt, record, capturable=target, **arguments)
    assert [group["capturable"] for group in other.param_groups] == [target]
    assert_same_state(train(other, range(3, 6)), train(opt, range(3, 6)))


@each_variant
def test_checkpoints_of_tensors(record: Record, arguments: Arguments) -> None:
    """Tensor hyper-parameters are saved with their values, and later writes to them take effect."""
    given = with_betas(record, arguments)
    opt = train(make(record, capturable=True, **on_device(given)), range(2))
    write(opt, moved(given, 2))
    other = loaded(opt, record, capturable=True, **on_device(given))
    assert float(other.param_groups[0]["lr"]) == float(opt.param_groups[0]["lr"])
    for each in (opt, other):
        train(each, [2])
        write(each, moved(given, 3))
        train(each, [3])
    assert_same_state(other, opt)


def test_loading_copies_tensor_hyperparameters() -> None:
    """An optimizer does not share its lr tensor with the one whose state dict it loaded."""
    record = RECORDS["AdamW"]
    opt = train(make(record, capturable=True, lr=torch.tensor(0.5)), range(2))
    other = make(record, capturable=True, lr=torch.tensor(0.25))
    other.load_state_dict(opt.state_dict())
    opt.param_groups[0]["lr"].fill_(0.125)
    assert float(other.param_groups[0]["lr"]) == 0.5


def test_capturable_set_after_some_steps() -> None:
    """`capturable` may change between steps. The step count moves to the device and back."""
    record = RECORDS["AdamP"]
    opt, other = (train(make(record, **record.typical), range(2)) for _ in range(2))
    opt.param_groups[0]["capturable"] = True
    train(opt, range(2, 4))
    assert_same_state(opt, train(other, range(2, 4)))
    opt.param_groups[0]["capturable"] = False
    assert_same_state(train(opt, range(4, 6)), train(other, range(4, 6)))
