"""Coverage of records.py: every optimizer, argument and backend, with decays large enough to be detected when dropped."""

from __future__ import annotations

import torch

import onepass
from records import BACKENDS, COMPILED, RECORDS, Record, each_optimizer


@each_optimizer
def test_decay_is_large(record: Record) -> None:
    for name, arguments in record.variants.items():
        assert name == "no_decay" or arguments["weight_decay"] >= 0.05
        assert arguments["lr"] >= 0.01


@each_optimizer
def test_every_argument_has_a_variant(record: Record) -> None:
    """For each argument some variant, run by the matrix and the mutation tests, differs from the default."""
    defaults = record.make([torch.zeros(1)], lr=1.0, backend="reference").defaults
    given = {name for arguments in record.variants.values() for name, value in arguments.items()
             if value != defaults[name]}  # fmt: skip
    # decouple_lr does not apply to SGD's decay; test_masters.py and test_precision.py run every variant with the others.
    elsewhere = {"backend", "capturable", "master_weights", "state_dtype", "stochastic_rounding", "seed"}
    assert set(defaults) - given <= {*elsewhere, *(["decouple_lr"] if record.name == "SGD" else [])}


def test_every_class_has_a_record() -> None:
    classes = {name for name in onepass.__all__ if isinstance(getattr(onepass, name), type)} - {
        "LastStep",
        "Optimizer",
        "Verdict",
    }
    assert set(RECORDS) == classes


def test_every_usable_backend_is_tested() -> None:
    """A missing backend that should be usable is in BACKENDS too: its tests fail with the reason."""
    assert {name for name, reason in onepass.backends().items() if reason is None} <= set(BACKENDS)
    assert COMPILED
