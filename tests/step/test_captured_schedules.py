"""torch's schedulers write into a tensor lr, and a captured step replays with it."""

from __future__ import annotations

import pytest
import torch

from capturable import capture, make, put
from drive import parameters_of, train
from emulated_backend import emulated
from records import RECORDS
from schedules import SCHEDULERS, advance

pytestmark = pytest.mark.usefixtures("no_capture")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("decouple", [False, True])
def test_schedulers_drive_a_captured_step(scheduler: str, decouple: bool) -> None:
    """Same results as with an lr that is a number, up to rounding."""
    given = dict(weight_decay=0.25, decouple_lr=decouple)
    record = RECORDS["AdamP"]
    opt = make(record, capturable=True, lr=torch.tensor(0.125, dtype=torch.float64), **given)
    other = make(record, lr=0.125, **given)
    lr = opt.param_groups[0]["lr"]
    schedules = [SCHEDULERS[scheduler](each) for each in (opt, other)]
    train(opt, [0])
    train(other, [0])
    capture(opt)
    seen = {float(lr)}
    for time in range(1, 6):
        for schedule in schedules:
            advance(schedule)
        assert opt.param_groups[0]["lr"] is lr
        put(opt, time)
        emulated.replay()
        train(other, [time])
        assert float(lr) == pytest.approx(other.param_groups[0]["lr"], rel=1e-12)
        for p, q in zip(parameters_of(opt), parameters_of(other), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        seen.add(float(lr))
    assert len(seen) > 1
