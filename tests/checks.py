"""A part of this suite, small and quick, that a broken rule must not get past. For the mutation tests."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch

import test_gate
import test_oracles
import test_parity
import test_projection
import test_prox
import test_replaced
import test_scale_free
import test_truth
from records import PROJECTED, RECORDS


def of_the_rule(backend: str) -> Iterator[partial[None]]:
    """Tests that hold for every backend, the reference included."""
    for record in RECORDS.values():
        for arguments in record.variants.values():
            yield partial(test_truth.test_one_step, backend, torch.float64, record, arguments)
        yield partial(test_truth.test_16_bit_rounds_once, backend, torch.bfloat16, record, record.typical)
    sgd = RECORDS["SGD"]
    for arguments in sgd.variants.values():
        yield partial(test_oracles.test_agreement, backend, sgd, arguments, sgd.oracles[0], torch.float64, 1e-12)
    yield partial(test_truth.test_tiny_decay_is_honoured, backend, "AdamW")
    yield partial(test_scale_free.test_no_gradient_ever_and_no_eps, backend, torch.float32, "AdamW")
    yield partial(test_prox.test_never_overshoots_zero, backend, torch.float32, "AdamProx", {}, 3.0)
    for record in map(RECORDS.__getitem__, PROJECTED):
        for where in ("gradient", "parameter"):
            yield partial(test_gate.test_no_number, backend, record, math.nan, where, 3)
        yield partial(test_gate.test_strict_threshold, backend, record)
        yield partial(test_gate.test_one_row_decides_for_all, backend, record)
        for scales in ((1e-2, 1e3), (1e3, 1e-2)):
            yield partial(test_gate.test_eps_is_the_least_norm, backend, record, *scales)
        yield partial(test_gate.test_zero_parameter, backend, record, 0.0, 0)
        yield partial(test_gate.test_fewer_than_two_dimensions, backend, record, (6,))
    yield partial(test_projection.test_project_momentum_projects_the_buffer, backend)


def of_the_kernels(backend: str) -> Iterator[partial[None]]:
    """Tests of what a compiled backend does beside the rule: memory, pieces of rows, prediction, settling."""
    adamp, adam = RECORDS["AdamP"], RECORDS["AdamW"]
    for record in (adam, adamp):
        for layout in ("contiguous", "gapped_transposed"):
            yield partial(test_parity.test_layouts, backend, torch.float32, layout, record)
    for record in map(RECORDS.__getitem__, PROJECTED):
        yield partial(test_projection.test_counter_and_settling, backend, record)
        yield partial(test_projection.test_16_bit_never_settles, backend, record, torch.bfloat16)
    for dtype in (torch.float32, torch.float16):
        yield partial(test_parity.test_large_tensors, backend, dtype, adamp)
    yield partial(test_parity.test_wrong_and_right_predictions, backend, torch.float32, adamp, adamp.typical)
    for lr_wd in (0.7, 1.0):
        yield partial(test_gate.test_decay_around_the_recoverable, backend, lr_wd, "channel")
    yield partial(test_replaced.test_gradients, backend, adam, test_replaced._elsewhere)


def of_the_triton_rule(backend: str) -> Iterator[partial[None]]:
    """Of prediction and settling, what the rule in Triton says; a quick part of `of_the_kernels`."""
    for record in map(RECORDS.__getitem__, PROJECTED):
        yield partial(test_projection.test_counter_and_settling, backend, record)
    for gate in ("none", "channel"):
        yield partial(test_gate.test_decay_around_the_recoverable, backend, 1.0, gate)


def failure(test: partial[None]) -> str | None:
    """What a test has to say against, or None."""
    try:
        test()
    except AssertionError as error:
        return f"{test.func.__name__}: {error}"
    return None


def first_failure(tests: Iterator[partial[None]]) -> str | None:
    return next(filter(None, map(failure, tests)), None)
