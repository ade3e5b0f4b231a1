"""One step of one projected parameter, and its check against truth.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import truth
from compare import assert_within
from records import Record

GATES = ["none", "channel", "layer"]

# Of the magnitude of the terms of one projected step, corrected or not; see side_by_side.py.
UNITS = 6


def optimizer_of(record: Record, p: Tensor, backend: str, **changed: Any) -> Any:
    """The record's optimizer with its typical arguments, updated with `changed`."""
    return record.make([p], backend=backend, **{**record.typical, **changed})


def set_counter(opt: Any, p: Tensor, counter: int) -> None:
    """Makes the optimizer predict "channel" (counter 2 or 3) or "none" (0 or 1)."""
    opt.state[p]["gate_counter"] = torch.tensor(counter, dtype=torch.uint8)


def first_step_of(opt: Any, record: Record, p: Tensor) -> truth.Step:
    """The correct first step of the optimizer on `p`."""
    zero = truth.wide(torch.zeros_like(p))
    state = {"step": 0.0, **{key: zero for key in record.moments}}
    with np.errstate(invalid="ignore"):
        return truth.step(record.name, opt.param_groups[0], truth.wide(p), truth.wide(p.grad), state)


def check_first_step(opt: Any, record: Record, p: Tensor) -> str:
    """Steps, compares parameter and gate with truth.py, and returns the gate."""
    want = first_step_of(opt, record, p)
    opt.step()
    assert_within(p, want.p, want.size, UNITS, f"gate {want.gate}")
    assert opt.last_step()[p].gate == want.gate
    return want.gate
