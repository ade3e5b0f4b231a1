"""The records cover what there is: no decay that could be dropped unnoticed, no argument that is never given."""

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
    """One in which it differs from its default, which the matrix and the mutation tests then run through."""
    defaults = record.make([torch.zeros(1)], lr=1.0, backend="reference").defaults
    given = {name for arguments in record.variants.values() for name, value in arguments.items()
             if value != defaults[name]}  # fmt: skip
    # SGD has no decay that lr multiplies.
    assert set(defaults) - given <= {"backend", "capturable", *(["decouple_lr"] if record.name == "SGD" else [])}


def test_every_class_has_a_record() -> None:
    classes = {name for name in onepass.__all__ if isinstance(getattr(onepass, name), type)} - {
        "LastStep",
        "Optimizer",
        "Verdict",
    }
    assert set(RECORDS) == classes


def test_every_usable_backend_is_tested() -> None:
    """Also one that cannot be used here, where it ought to be: its tests then fail and say why."""
    assert {name for name, reason in onepass.backends().items() if reason is None} <= set(BACKENDS)
    assert COMPILED
