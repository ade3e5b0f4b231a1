"""A small, fast part of this suite that must detect a broken rule. For the mutation tests."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from functools import partial

import pytest
import torch

from paths import IMPORTED

# The folders of the test modules below.
sys.path += map(str, IMPORTED)

import test_block_orders
import test_blocks
import test_capturable
import test_clip
import test_cuda_arithmetic
import test_direct_reads
import test_exchanges
import test_gate
import test_grad_scaler
import test_gradient_dtypes
import test_launches
import test_masters
import test_oracles
import test_parity
import test_precision
import test_precision_state
import test_projection
import test_prox
import test_replaced
import test_rows_on_chip
import test_scale_free
import test_semantics
import test_traffic
import test_truth

from precisions import SHORT
from records import PROJECTED, RECORDS


def of_the_rule(backend: str) -> Iterator[partial[None]]:
    """Tests for every backend, the reference included."""
    for record in RECORDS.values():
        for arguments in record.variants.values():
            yield partial(test_truth.test_one_step, backend, torch.float64, record, arguments)
        yield partial(test_truth.test_16_bit_rounds_once, backend, torch.bfloat16, record, record.typical)
    sgd = RECORDS["SGD"]
    for arguments in sgd.variants.values():
        yield partial(
            test_oracles.test_matches_the_oracle, backend, sgd, arguments, sgd.oracles[0], torch.float64, 1e-12
        )
    yield partial(test_truth.test_tiny_decay_has_no_bias, backend, "AdamW")
    yield partial(test_scale_free.test_zero_gradients_without_eps, backend, torch.float32, "AdamW")
    yield partial(test_prox.test_proximal_decay_keeps_the_sign, backend, torch.float32, "AdamProx", {}, 3.0)
    for record in map(RECORDS.__getitem__, PROJECTED):
        for where in ("gradient", "parameter"):
            yield partial(test_gate.test_nonfinite_numbers_close_the_gate, backend, record, math.nan, where, 3)
        yield partial(test_gate.test_threshold_is_strict, backend, record)
        yield partial(test_gate.test_largest_cosine_decides_the_gate, backend, record)
        yield partial(test_gate.test_near_the_threshold, backend, record, (40, 9), "layer")
        for scales in ((1e-2, 1e3), (1e3, 1e-2)):
            yield partial(test_gate.test_eps_bounds_norms_from_below, backend, record, *scales)
        yield partial(test_gate.test_zero_parameter, backend, record, 0.0, 0)
        yield partial(test_gate.test_vectors_and_scalars_are_not_projected, backend, record, (6,))
    yield partial(test_projection.test_project_momentum_projects_the_buffer, backend)


def of_the_kernels(backend: str) -> Iterator[partial[None]]:
    """Tests of a compiled backend beside the rule: memory, pieces of rows, prediction, correction."""
    adamp, adam = RECORDS["AdamP"], RECORDS["AdamW"]
    for record in (adam, adamp):
        for layout in ("contiguous", "gapped_transposed"):
            yield partial(test_parity.test_layouts, backend, torch.float32, layout, record)
    for record in map(RECORDS.__getitem__, PROJECTED):
        yield partial(test_projection.test_gate_counter_and_correction, backend, record)
        yield partial(test_projection.test_16_bit_tensors_are_never_corrected, backend, record, torch.bfloat16)
    for dtype in (torch.float32, torch.float16):
        yield partial(test_parity.test_large_tensors, backend, dtype, adamp)
    yield partial(test_parity.test_wrong_and_right_predictions, backend, torch.float32, adamp, adamp.typical)
    for lr_wd in (0.7, 1.0):
        yield partial(test_gate.test_decay_around_the_recovery_limit, backend, lr_wd, "channel")
    yield partial(test_replaced.test_replaced_gradients, backend, adam, test_replaced._elsewhere)
    yield partial(test_direct_reads.test_moved_state, backend, test_direct_reads.by_data, "AdamW", None)
    yield partial(test_direct_reads.test_other_strides_at_the_same_address, backend, None)
    yield partial(test_direct_reads.test_another_dtype_at_the_same_address, backend, "step", None)
    yield partial(test_direct_reads.test_sign_changes_at_the_same_address, backend, test_direct_reads.as_new, None)
    yield from of_exact_weights(backend)
    yield from of_short_moments(backend)
    yield from of_blocks(backend)
    yield from of_exchanges(backend)
    yield from of_scaled_gradients(backend)


def of_exact_weights(backend: str) -> Iterator[partial[None]]:
    yield partial(test_masters.test_a_step_of_nothing_keeps_every_float, backend)
    yield partial(test_masters.test_nan_of_any_payload_stays, backend)
    yield partial(test_masters.test_a_mask_makes_no_nan, backend, 0.0)
    yield partial(test_masters.test_a_remainder_that_is_not_aligned_as_its_parameter, backend)
    yield partial(test_masters.test_layouts, backend, "gapped_transposed", RECORDS["AdamW"])
    yield partial(test_masters.test_a_wrong_prediction_is_corrected, backend, RECORDS["AdamP"], "channel", 0)


def of_the_draws(backend: str) -> Iterator[partial[None]]:
    yield partial(test_precision.test_one_step, backend)
    yield partial(test_precision.test_small_steps_add_up, backend)
    yield partial(test_blocks.test_one_step, backend)


def of_short_moments(backend: str) -> Iterator[partial[None]]:
    for precision in SHORT:
        yield partial(test_precision.test_layouts, backend, precision, "contiguous", RECORDS["AdamW"])
    for what in ("seed", "step", "tensor"):
        yield partial(test_precision.test_bits_depend_on, backend, what)
    yield partial(test_precision.test_the_number_of_a_tensor_is_that_of_the_state_dict, backend)
    yield partial(test_precision.test_layouts, backend, "stochastic", "transposed", RECORDS["SGD"])
    yield partial(test_precision.test_large_tensors, backend, "stochastic_short_moments", RECORDS["AdamP"])
    yield partial(test_precision_state.test_moments_that_are_not_aligned_as_their_parameter, backend)
    yield partial(test_precision.test_nan_of_any_payload_stays, backend)
    project = RECORDS["SGDP"].variants["project_momentum"]
    yield partial(test_precision.test_variants, backend, "short_moments", RECORDS["SGDP"], project)


def of_blocks(backend: str) -> Iterator[partial[None]]:
    """Moments of 8 bits, and float32 gradients of 16-bit parameters."""
    adamw = RECORDS["AdamW"]
    yield partial(test_blocks.test_one_step, backend)
    yield partial(test_blocks.test_aligned_tensors, backend, "exact_blocks", adamw)
    yield partial(test_blocks.test_operands_that_lie_alike_between_vectors, backend, "blocks")
    yield partial(test_blocks.test_numbers_of_any_size, backend, "blocks")
    yield partial(test_blocks.test_nan_stays_in_its_block, backend, "blocks")
    yield partial(test_blocks.test_layouts, backend, "stochastic_blocks", "transposed", adamw)
    yield partial(test_blocks.test_a_wrong_prediction_is_corrected, backend, "blocks", "channel", 0)
    yield partial(test_precision_state.test_moments_are_of_8_bits_where_tensors_are_large, backend)
    yield partial(test_gradient_dtypes.test_layouts, backend, "exact", "contiguous", "AdamP")
    yield partial(test_gradient_dtypes.test_layouts, backend, "nearest", "gapped_transposed", "AdamP")
    yield partial(test_gradient_dtypes.test_a_float32_run_on_the_exact_weights, backend, RECORDS["AdamP"])


def of_exchanges(backend: str) -> Iterator[partial[None]]:
    """Tests of the exchange of row statistics between plans."""
    for dtype in (torch.float32, torch.bfloat16):
        yield partial(test_exchanges.test_two_plans_give_the_bits_of_one, backend, RECORDS["AdamP"], dtype, "auto")
    yield partial(test_exchanges.test_options_in_two_plans, backend, {"speculate": False})


def of_scaled_gradients(backend: str) -> Iterator[partial[None]]:
    for dtype in (torch.float32, torch.float64):
        yield partial(test_clip.test_norm, backend, dtype)
    yield partial(test_clip.test_norm_is_over_all_groups, backend)
    for record in (RECORDS["AdamP"], RECORDS["SGD"]):
        yield partial(test_clip.test_same_as_scaled_gradients, record, backend, torch.float32)
        yield partial(test_grad_scaler.test_same_bits_as_unscaled, record, backend)
        yield partial(test_grad_scaler.test_nothing_changes_on_overflow, record, backend)
    for overflows in ({0}, {1, 3}):
        sgd = dict(momentum=0.6, dampening=0.4)
        yield partial(test_grad_scaler.test_run_with_overflows, RECORDS["SGD"], sgd, backend, True, overflows)
    yield partial(test_clip.test_norm_below_the_limit_changes_nothing, backend)


def cuda() -> Iterator[partial[None]]:
    """Tests of the CUDA kernels, emulated on a CPU, the fast and broad ones first."""
    backend = "emulated"
    adamw, adamp, sgd, sgdp = (RECORDS[name] for name in ("AdamW", "AdamP", "SGD", "SGDP"))
    wrong_and_right = partial(test_parity.test_wrong_and_right_predictions, backend, torch.float32)
    for layout in ("contiguous", "gapped_transposed"):
        yield partial(test_parity.test_layouts, backend, torch.float32, layout, adamp)
    yield partial(test_parity.test_large_tensors, backend, torch.float32, adamw)
    yield partial(wrong_and_right, adamp, adamp.typical)
    for others in (1.0, 0.0):
        yield partial(test_cuda_arithmetic.test_root_of_floats_of_every_size, others)
    yield partial(test_cuda_arithmetic.test_quotients_of_every_size)
    # Capturable groups, and numbers that are kernel parameters or uploaded.
    for record in (adamw, RECORDS["AdamProxL2"], sgd, sgdp):
        for arguments in record.variants.values():
            yield partial(test_capturable.test_changes_in_place, record, arguments)
            yield partial(test_capturable.test_float32_hyper_parameters, record, arguments)
    yield partial(test_capturable.test_negated_gradients, adamw)
    yield partial(test_capturable.test_capturable_and_other_groups)
    yield partial(
        test_capturable.test_same_bits_as_not_capturable, torch.float32, sgd, sgd.variants["dampening_maximize"]
    )
    yield partial(test_capturable.test_many_tensors, 300)
    yield partial(test_launches.test_some_tensors_without_a_gradient, 10)
    for distinct in (9, 40):
        yield partial(test_launches.test_step_counts_that_differ, 40, distinct)
    yield partial(test_launches.test_momentum_of_sgd_changes_between_steps, (0.0, 0.9), 10)
    yield partial(test_launches.test_replaced_data, 10)
    # Gates, and deferred rows.
    for counter in (0, 3):
        for gate in ("none", "channel"):
            yield partial(test_rows_on_chip.test_deferred_piece, gate, counter)
        yield partial(test_rows_on_chip.test_nan_survives_zero_lr_and_decay, adamp, counter)
    yield partial(test_rows_on_chip.test_correction_writes_deferred_rows_only)
    yield partial(test_projection.test_gate_counter_and_correction, backend, adamp)
    yield partial(test_projection.test_project_momentum_projects_the_buffer, backend)
    for where in ("gradient", "parameter"):
        yield partial(test_gate.test_nonfinite_numbers_close_the_gate, backend, adamp, math.nan, where, 3)
    yield partial(test_parity.test_variants, backend, torch.bfloat16, adamp, adamp.variants["quick_maximize"])
    yield partial(test_parity.test_operands_of_different_layouts, backend, torch.float32, "transposed", "gapped", adamp)
    yield partial(test_semantics.test_dtypes_mix_within_a_group, backend, adamw)
    for dtype in (torch.float32, torch.float64):
        yield partial(test_rows_on_chip.test_rows_that_just_fit_the_row_cache, dtype, "contiguous", adamp)
    yield partial(test_rows_on_chip.test_largest_tensors_of_a_warp, torch.float64, (1, 1500))
    yield partial(wrong_and_right, adamp, adamp.variants["as_timm"])
    yield from of_exact_weights(backend)
    yield from of_short_moments(backend)
    yield from of_blocks(backend)
    yield from of_scaled_gradients(backend)
    yield from of_exchanges(backend)
    for record in (adamp, sgdp):
        yield partial(test_block_orders.test_any_order_matches_the_reference, torch.float32, record.name)
    yield partial(test_block_orders.test_same_bits_of_variants, "AdamP", "two_visits")
    yield partial(test_launches.test_new_gradients, 1500)
    yield partial(test_parity.test_large_tensors, backend, torch.float16, adamp)
    # Unnecessary reads and writes.
    for gate, predicted in (("none", "channel"), ("layer", "none")):
        yield partial(test_traffic.test_a_correction_reads_p_and_moments_and_writes_p, gate, predicted)
    yield partial(test_rows_on_chip.test_more_corrections_than_a_warp_has_lanes)
    once_more = test_traffic.CORRECTED | {"p": (8, 4)}
    yield partial(test_traffic.test_a_row_that_is_cut_into_pieces, "channel", "channel", once_more)


def of_the_triton_rule(backend: str) -> Iterator[partial[None]]:
    """Tests of prediction and correction in Triton's rule; a fast part of `of_the_kernels`."""
    for record in map(RECORDS.__getitem__, PROJECTED):
        yield partial(test_projection.test_gate_counter_and_correction, backend, record)
    for gate in ("none", "channel"):
        yield partial(test_gate.test_decay_around_the_recovery_limit, backend, 1.0, gate)


def failure(test: partial[None]) -> str | None:
    """What a test that fails says, or None."""
    try:
        test()
    except (AssertionError, pytest.fail.Exception) as error:
        return f"{test.func.__name__}: {error}"
    return None


def first_failure(tests: Iterable[partial[None]], first: int | str = 0) -> tuple[int, str] | None:
    """The number and the error of a test that fails, or None. Test `first`, or all of that name, run first, then all others in
    order."""
    asked = sorted(enumerate(tests), key=lambda numbered: first not in (numbered[0], numbered[1].func.__name__))
    return next(((i, said) for i, test in asked if (said := failure(test))), None)
