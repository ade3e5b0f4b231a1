"""Mutants of csrc/cuda/, all compiled into one module that runs on a CPU (see emulated/), and a program that enables one
after the other and runs checks.cuda() against each.

    ONEPASS_EMULATED=MODULE python tests/support/cuda_mutants.py

reads numbers of mutants, a line each, and answers each with a line of JSON: the failed check, or null. A mutant may hang
or crash, so each runs in its own process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from native_mutants import Mutant, write_sources
from paths import ROOT, TESTS

sys.path.insert(0, str(TESTS / "emulated"))
import build as emulated

SECONDS = 60

MUTANTS = [
    # --- memory.cuh: elements
    Mutant("the tail of a span is dropped", "at >= 0 && at < length", "at >= 0 && at + 1 < length",
           "bool holds(int at) const { return @; }"),
    Mutant("the head of a span is dropped", "at >= 0 && at < length", "at >= 1 && at < length",
           "bool holds(int at) const { return @; }"),
    Mutant("no element is out of bounds", "at >= 0 && at < length", "true", "bool holds(int at) const { return @; }"),
    Mutant("the first vector is always whole", "phase > 0 ? 1 : 0", "0"),
    Mutant("the last vector is always whole", "(phase + length) / lanes", "(phase + length - 1) / lanes + 1",
           "end_of_whole() const { return @; }"),
    Mutant("no vector for the tail", "(phase + length + lanes - 1) / lanes", "(phase + length) / lanes"),
    Mutant("all operands are aligned alike", "(reinterpret_cast<uint64_t>(data) / sizeof(T) - offset_of_p) % lanes == 0",
           "true"),
    # --- pack.cuh: arithmetic
    Mutant("every root is in the window", "of_a & window_bit", "true", "if (@) {"),
    Mutant("every numerator is in the window", "of_a & window_bit", "true", "if ((@) &&"),
    Mutant("every divisor is in the window", "(of_b & upper_half_bits) == upper_half_bits", "true"),
    Mutant("small roots are not scaled", "x < 0x1p-96f", "false"),
    Mutant("the root of zero is NaN", "x == 0", "false", "return @ || x == std"),
    Mutant("zero over zero is zero", "b > 0", "true", "return a == 0 && @"),
    Mutant("every row starts on a vector", "int(reinterpret_cast<uint64_t>(p.address(at)) / sizeof(Element) % lanes)", "0"),
    Mutant("the strides are those of p", "(1 + operand) * dims + d", "dims + d"),
    Mutant("the sizes are strides", "load(layout + d, of_plan)", "load(layout + dims + d, of_plan)"),
    Mutant("every dimension uses the whole index", "rest", "element", "element = @;", "memory.cuh"),
    # --- exact weights
    Mutant("ties go to even", "x == x ? bits + 0x8000 : (bits | 0x400000)",
           "x == x ? bits + (((bits >> 16) & 1) + 0x7fff) : (bits | 0x400000)"),
    Mutant("a NaN is rounded like a number", "x == x ? bits + 0x8000 : (bits | 0x400000)", "bits + 0x8000"),
    Mutant("a remainder makes a NaN of zero", "x == x ? x : parameter", "x"),
    Mutant("remainders have no sign", "uint32_t(int32_t(int16_t(x.bits)))", "uint32_t(x.bits)"),
    Mutant("remainders lie as parameters do", "operand == of_r && with_remainder", "false"),
    Mutant("remainders are aligned", "like_p<MasterRemainder>(t->remainder)", "true"),
    # --- short moments and random bits
    Mutant("the tensor is not in the draws", "scalars->draw_key.with(t->number)", "scalars->draw_key"),
    Mutant("a tensor has another number", "d.number = t.number", "d.number = uint32_t(i)"),
    Mutant("strided draws go by the place in memory", "place.index = element", "place.index = 0"),
    Mutant("v is rounded to nearest", "rounded_up(moment[1].x[i], draw_at(key, place.in_whole(t->whole_place) + i) >> 16)",
           "rounded_to_nearest(moment[1].x[i])"),
    Mutant("p and v are rounded by the same bits", "draw_at(key, place.in_whole(*source.whole_place) + i) & 0xffff", "draw_at(key, place.in_whole(*source.whole_place) + i) >> 16"),
    Mutant("short moments are cut off", "bits_of(x) + (x == x ? up : 0)", "bits_of(x)"),
    Mutant("short moments are aligned as parameters", "like_p<M>(t->moment[0])", "true"),
    Mutant("a projected buffer is cut off", "o.round_moments(place, &buffer)", "(void)0"),
    # --- moments of 8 bits, gradients of another dtype
    Mutant("the scale of m is a lane's", "__reduce_max_sync(all_lanes, largest_of_m)", "largest_of_m"),
    Mutant("the scale of v is a lane's", "__reduce_max_sync(all_lanes, largest_of_v)", "largest_of_v"),
    Mutant("v of 8 bits is rounded by lower bits", "draw_at(key, place.in_whole(o.t->whole_place) + i) >> (32 - Codes<false>::dropped_bits)",
           "draw_at(key, place.in_whole(o.t->whole_place) + i) & (Codes<false>::unit - 1)"),
    Mutant("blocks run on over rows", "row * blocks_of(t->length) + (index - row * t->length) / block_length",
           "index / block_length"),
    Mutant("rows of parts of vectors are whole", "s.length % lanes == 0", "true", "&& @;"),
    Mutant("rows between vectors are aligned", "phase_of(s.first) == 0", "true"),
    Mutant("gradients of float32 are read as 16 bits", "sizeof(Element) == 2 && *at_wide", "false"),
    # --- item.cuh: operands
    Mutant("m uses v's memory", "t->moment[0]", "t->moment[1]", "m.data = static_cast<M*>(@)"),
    Mutant("v uses m's memory", "t->moment[1]", "t->moment[0]", "v.data = static_cast<M*>(@)"),
    Mutant("g uses p's memory", "this->gradient", "t->p", "g = {@, &t->wide_gradient};"),
    Mutant("every item begins at row 0", "item.at * t->length", "0"),
    Mutant("every piece begins at element 0", "item.at", "item.at / t->length * t->length", "first = piece ? @ :"),
    Mutant("the last row of an item is dropped", "piece ? 1 : item.rows", "piece ? 1 : item.rows - (item.rows > 1)"),
    Mutant("pieces are treated as rows", "item.rows < 0", "false"),
    Mutant("v is not written", "Rule::moments > 1", "false", "if (@) o.v.template write<whole>(place, moment[1])"),
    # --- thread_group.cuh: reductions
    Mutant("subgroups of half the width", "width / 2", "width / 4", "int step = @;"),
    Mutant("no join of the lanes", "width < warp_size", "false", "all = @ ? join_lanes"),
    Mutant("a join of half the lanes", "step >= width", "step > width"),
    Mutant("the maximum is the first lane's", "max_or_nan(r.max_cosine_squared, __shfl_xor_sync(all_lanes, "
           "r.max_cosine_squared, step))", "(__shfl_xor_sync(all_lanes, r.max_cosine_squared, step), r.max_cosine_squared)"),
    Mutant("the deferral is the first lane's", "__any_sync(all_lanes, r.deferred)", "r.deferred"),
    Mutant("the maximum drops NaN", "a > b || a != a ? a : b", "a > b ? a : b"),
    Mutant("statistics of the other warps are dropped", "w < warps", "w < 1", "@; ++w) stats.add"),
    Mutant("sums of the other warps are dropped", "w < warps", "w < 1", "@; ++w) s.add"),
    Mutant("statistics of a block's items are not cleared", "lane() == 0", "false",
           "if (publishes && @) own.of_warp[warp()] = {};"),
    Mutant("every lane adds its statistics", "lane() == 0", "lane() < 2", "if (@) stats_of_warp.add(all)"),
    Mutant("no sync before the warps' sums are added", "sync()", "void()", "shared.sums[warp()] = s; @;"),
    Mutant("no sync before a row's step is broadcast", "sync()", "void()", "shared.row_decision = r; @;"),
    Mutant("no sync between the sums of two rows", "Group::sync()", "void()", "if (width > warp_size) @;"),
    Mutant("no sync before statistics are published", "__syncthreads()", "void()", "int count) { @;"),
    Mutant("no sync after statistics are published", "__syncthreads()", "void()", "stats.add(own.of_warp[w]); @;"),
    # --- rows.cuh: rows
    Mutant("only the first row is stepped", "o.rows", "1", "s.length *= @; return s"),
    Mutant("the last vector is not visited", "j < vectors", "j + 1 < vectors", "for (int j = rank; @;) {"),
    Mutant("a round of vectors is whole if its first is", "(count - 1) * width", "0", "j < end - @) {"),
    Mutant("any last vector is whole", "j >= first && j < end", "true", "if (@) round("),
    Mutant("a round is taken for one vector", "count * width", "width", "j += @; } else"),
    Mutant("the last row has no subgroup", "first + subgroup < o.rows", "first + subgroup + 1 < o.rows"),
    Mutant("idle subgroups redo the first row", "active ? s.vectors() : 0", "s.vectors()"),
    Mutant("a warp caches rows of any length", "vectors > most * warp_size", "false"),
    Mutant("rows of one vector less", "even ? 0 : 1", "-1"),
    Mutant("p is cached over u", "i++", "i", "cached(@).x = u"),
    Mutant("threads share what they cache", "int(threadIdx.x)", "0", "i / of_thread * block_size + @"),
    Mutant("every row caches p", "o.t->row_cache != RowCache::u", "true"),
    Mutant("no row caches p", "o.t->row_cache != RowCache::u", "false"),
    Mutant("the coefficient of the wrong row", "o.first_row() + r", "r"),
    Mutant("the cosine is that of u", "e.g", "u", "add_products(lane_sums, e.p, @, u)"),
    Mutant("the update's moments are not written", "e.template write_moments<whole>(o, place)", "void()",
           "keep(e, e.template direct<true>(o, place, rule)); @;"),
    Mutant("a piece has a cosine", "o.piece", "false", "if (@) return {sums, 0"),
    Mutant("a deferred row is not reported", "step.deferred", "false", "cosine_squared(sums), @};"),
    Mutant("a deferred row is written", "!step.deferred", "true"),
    Mutant("the buffered momentum is not projected", "policy == WritePolicy::buffered && o.scalars->project_momentum", "false"),
    Mutant("the gradient's scale is not squared", "scale * scale", "scale"),
    Mutant("a layer uses the rows' coefficients", "gate == Gate::layer ? layer : own", "own"),
    Mutant("correction ignores deferred", "done.deferred || !(done.step == wanted)", "!(done.step == wanted)"),
    Mutant("correction does all rows again", "done.deferred || !(done.step == wanted)", "true"),
    Mutant("correction ignores a deferred piece", "deferred ? Affine{0, 0} : unprojected", "unprojected"),
    Mutant("correction treats pieces as rows", "o.piece", "false", "const Applied done = @"),
    Mutant("correction reads no gradient", "rule.reads_gradient()", "false"),
    Mutant("correction always reads the gradient", "rule.reads_gradient()", "true"),
    Mutant("the corrected buffer is not projected", "scalars.project_momentum && gate != Gate::none", "false"),
    # --- finalizer.cuh: the end of a tensor
    Mutant("the gate is decided before the last item", "unsigned(o.t->items)", "unsigned(o.t->items - (o.t->items > 1))"),
    Mutant("every item decides the gate", "__shfl_sync(all_lanes, int(last), 0)", "true"),
    Mutant("the arrivals are not reset", "store(arrived, 0u, of_stats)", "void()"),
    Mutant("the last item's statistics are dropped", "i < t.items", "i + 1 < t.items"),
    Mutant("the pieces of a row are not added up", "o.piece", "false", "if (@ && with_cosines) all.max_cosine_squared"),
    Mutant("every row adds up the first row's pieces", "r * pieces + i", "i"),
    Mutant("only the first row's pieces are added up", "r < t.rows", "r < 1"),
    Mutant("the coefficient of pieces is not stored", "lane() == 0", "false", "if (@) store(plan.coefficients"),
    Mutant("the gate counter is not stored", "next_counter(load(counter, of_plan), gate)",
           "load(counter, of_plan)"),
    Mutant("no coefficient of a layer", "pr.coefficient(all.sums)", "0.0"),
    Mutant("no coefficient of a layer without speculation", "pr.coefficient(known.sums)", "0.0"),
    Mutant("no deferral is corrected", "v.corrected || deferred", "v.corrected"),
    Mutant("no misprediction is corrected", "v.corrected || deferred", "deferred"),
    # --- kernels.cuh: items
    Mutant("blocks miss the last item", "plan.block_items", "plan.block_items - 1", "each_item(plan, 0, @,"),
    Mutant("groups skip every other item", "grid_size() * groups", "2 * grid_size() * groups", "i += @;"),
    Mutant("every block begins at the first item", "blockIdx.x", "0", "@, 1, backwards"),
    Mutant("warps miss the last item", "plan.all_items", "plan.all_items - 1", "each_item(plan, plan.block_items, @,"),
    Mutant("warps begin at the second item", "warp()", "warp() + 1", "block * warps + @, warps"),
    Mutant("warps stride by blocks", "warps", "1", "@, backwards"),
    Mutant("items of a warp are not published", "own.index >= 0", "false"),
    Mutant("the last items of a block are not published", "last", "false", "++finished == warps || @)"),
    Mutant("every kernel steps every dtype", "t->key != plan.key", "false"),
    Mutant("tensors without a gradient are stepped", "!g", "(!g && (g = t->p, false))",
           "if (@) return; const KernelScalars"),
    Mutant("another tensor's gradient, passed by value", "unsigned(item.tensor)", "unsigned(item.tensor > 0)",
           "params.gradient[@]"),
    Mutant("another tensor's gradient, in memory", "unsigned(item.tensor)", "unsigned(item.tensor > 0)",
           "plan.gradients + @"),
    Mutant("the first scalars for all tensors, by value", "params.scalars + t->scalars_index", "params.scalars"),
    Mutant("the first scalars for all tensors, in memory", "int64_t(t->scalars_index) * scalars_bytes", "0", "plan.scalars + @) :"),
    Mutant("the gate of gate_stats is ignored", "load(&plan.verdicts[o.tensor].gate, of_stats)", "Gate::none"),
    Mutant("every row fits the row cache", "t.row_cache != RowCache::none", "true"),
    Mutant("a piece is never deferred", "load(&plan.row_stats[unsigned(index)].deferred, of_stats)", "false"),
    Mutant("nothing is corrected", "count == 0", "true"),
    Mutant("one tensor is corrected", "first + i < count", "first + i < 1"),
    Mutant("one round of tensors is corrected", "first < count", "first < 1", "int first = 0; @;"),
    Mutant("the items of one tensor are corrected", "at -= items", "at -= 0"),
    Mutant("the list of corrections grows", "store(corrected, 0u, of_stats)", "void()"),
    Mutant("the list of corrections is emptied once", "store(corrected + 1, 0u, of_stats)", "void()"),
    Mutant("the list of corrections is emptied too early", "gridDim.x", "1u", "+ 1 == @) { acquire()"),
    # --- device_scalars.cuh: capturable groups
    Mutant("device_scalars does not count", "load(t.step, of_plan) + 1", "load(t.step, of_plan)"),
    Mutant("lr as of the capture", "read(group.lr)", "group.fixed.lr"),
    Mutant("betas as of the capture", "read(group.beta2)", "group.fixed.beta2"),
    Mutant("momentum as of the capture", "read(group.momentum)", "group.fixed.momentum"),
    Mutant("doubles are read as floats", "n.wide", "false"),
    Mutant("floats are read as doubles", "n.wide", "true"),
    Mutant("no initial_lr", "read(group.initial_lr)", "h.lr"),
    Mutant("the device's decay does not enter the gradient", "group.decay == Decay::l2", "false"),
    Mutant("the device's metric decay ignores decouple_lr", "h.metric_decay = decay_lr * wd",
           "h.metric_decay = h.lr * wd"),
    Mutant("the device's decay ignores the momentum", "group.over_one_minus_momentum && wd != 0", "false"),
    Mutant("device_scalars ignores that a gradient is negated", "t.negated", "false", "if (@) h.grad_scale", "device_scalars.cuh"),
    Mutant("device_scalars ignores first buffers", "t.first_step", "false", "plan.lazy_buffer && @ &&", "device_scalars.cuh"),
    Mutant("every buffer is a first one", "load(plan.first_steps + tensor, of_plan)", "true"),
    Mutant("a first buffer stays first", "store(plan.first_steps + tensor, false, of_plan)", "void()"),
    # --- scaled gradients
    Mutant("a skipped step is counted", "skipped(plan.scaling)", "false",
           "if (@) return; for (int i = int(blockIdx.x) * block_size + int(threadIdx.x); i < plan.all_tensors; "
           "i += gridDim.x * block_size) { const void* g", "kernels.cuh"),
    Mutant("a step with an overflow is taken", "phase != Phase::square_sum && skipped(plan.scaling)", "false"),
    Mutant("the clip coefficient is ignored", "read(plan.scaling.clip)", "1.0"),
    Mutant("gradients stay scaled", "read(plan.scaling.grad_scale)", "1.0"),
    Mutant("the norm of one thread", "sum_lanes(own, warp_size)", "own", "collect(RowStats{@}"),
    Mutant("the norm misses the last tensor", "i < count", "i + 1 < count", "int i = threadIdx.x; @;", "launch.cu"),
    Mutant("the norm includes removed gradients", "store(numbers + i, 0.0, of_stats)", "void()"),
    Mutant("an empty tensor is not counted", "t.g.data ? t.g.data : &no_elements", "t.g.data"),
    Mutant("device_scalars writes one set of scalars", "int64_t(t.scalars_index) * scalars_bytes", "0"),
    Mutant("device_scalars misses the last tensor", "i < plan.all_tensors", "i + 1 < plan.all_tensors",
           "@; i += gridDim.x * block_size) { const void* g"),
    Mutant("device_scalars misses every other block", "gridDim.x * block_size", "2 * gridDim.x * block_size",
           "i += @) { const void* g"),
    Mutant("decide misses the last tensor", "i < plan.all_tensors", "i + 1 < plan.all_tensors",
           "@; i += gridDim.x * block_size) { const DeviceTensor& t"),
    Mutant("decide ignores exchanged statistics", "plan.stats", "nullptr", "if (!@) return decide"),
    Mutant("decide ignores deferred rows", "int(all.deferred)", "0"),
    Mutant("p is written before an exchange", "t.deferred", "false", "return @ ? WritePolicy::deferred"),
    Mutant("device_scalars counts for every dtype", "plan.tensors[i].key == plan.key", "true"),
    Mutant("device_scalars counts without a gradient", "g", "plan.tensors", "if (@ &&", "kernels.cuh"),
    # --- launch.cu, executor.cpp and launch_layout.cpp: the host
    Mutant("upload drops the last word", "i < chunk.count", "i + 1 < chunk.count"),
    Mutant("upload begins too early", "at / 8", "shadow.begin / 8", "chunk.to = in<uint64_t>(region) + @;"),
    Mutant("scalars beyond the arguments", "scalars_index_[i] >= max_scalars", "scalars_index_[i] > max_scalars"),
    Mutant("one set of scalars for all tensors", "keys_[i] == key", "true"),
    Mutant("the first buffer is always one", "t.first_step = false", "t.first_step = t.first_step"),
    Mutant("an address is uploaded once", "shadow_tensors_.set(i * sizeof d, &d, sizeof d)",
           "(shadow_tensors_.bytes[i * sizeof d] ? void() : shadow_tensors_.set(i * sizeof d, &d, sizeof d))"),
    Mutant("no step is counted", "*t.step += 1", "*t.step += 0"),
    Mutant("too many rows fit", "t.length <= elements_cached(t, cache, row_cache_bytes, block_size)",
           "t.length <= 2 * elements_cached(t, cache, row_cache_bytes, block_size)"),
    Mutant("no cache slot for the ends of a row", "vectors * threads - 1", "vectors * threads", "(@) * lanes_of(t)"),
    Mutant("strided tensors go to warps", "!t.packed || t.elements() > warp_elements", "t.elements() > warp_elements"),
    Mutant("warps get rows that they cannot cache", "fits_a_warp(t, row_cache_bytes)", "true",
           "return !t.projected || @;"),
]  # fmt: skip


# The check that notices a mutant runs first where it would be late, which saves minutes. All others follow.
NOTICED_BY = {
    "the first vector is always whole": "test_two_plans_give_the_bits_of_one",
    "all operands are aligned alike": "test_layouts",
    "every numerator is in the window": "test_quotients_of_every_size",
    "small roots are not scaled": "test_root_of_floats_of_every_size",
    "zero over zero is zero": "test_quotients_of_every_size",
    "every row starts on a vector": "test_changes_in_place",
    "the maximum is the first lane's": "test_nonfinite_numbers_close_the_gate",
    "the deferral is the first lane's": "test_nan_survives_zero_lr_and_decay",
    "the maximum drops NaN": "test_nonfinite_numbers_close_the_gate",
    "every lane adds its statistics": "test_norm",
    "no sync before a row's step is broadcast": "test_any_order_matches_the_reference",
    "no sync between the sums of two rows": "test_same_bits_of_variants",
    "only the first row is stepped": "test_project_momentum_projects_the_buffer",
    "rows of one vector less": "test_rows_that_just_fit_the_row_cache",
    "every row caches p": "test_rows_that_just_fit_the_row_cache",
    "no row caches p": "test_correction_writes_deferred_rows_only",
    "a deferred row is not reported": "test_nan_survives_zero_lr_and_decay",
    "a deferred row is written": "test_correction_writes_deferred_rows_only",
    "the buffered momentum is not projected": "test_project_momentum_projects_the_buffer",
    "the gradient's scale is not squared": "test_variants",
    "correction ignores deferred": "test_nan_survives_zero_lr_and_decay",
    "correction does all rows again": "test_correction_writes_deferred_rows_only",
    "correction treats pieces as rows": "test_deferred_piece",
    "correction reads no gradient": "test_variants",
    "correction always reads the gradient": "test_a_correction_reads_p_and_moments_and_writes_p",
    "the corrected buffer is not projected": "test_project_momentum_projects_the_buffer",
    "the arrivals are not reset": "test_operands_of_different_layouts",
    "the gate counter is not stored": "test_gate_counter_and_correction",
    "no coefficient of a layer without speculation": "test_project_momentum_projects_the_buffer",
    "every kernel steps every dtype": "test_capturable_and_other_groups",
    "tensors without a gradient are stepped": "test_many_tensors",
    "another tensor's gradient, in memory": "test_new_gradients",
    "the first scalars for all tensors, by value": "test_many_tensors",
    "the gate of gate_stats is ignored": "test_project_momentum_projects_the_buffer",
    "one round of tensors is corrected": "test_more_corrections_than_a_warp_has_lanes",
    "the list of corrections grows": "test_layouts",
    "device_scalars does not count": "test_changes_in_place",
    "momentum as of the capture": "test_changes_in_place",
    "floats are read as doubles": "test_float32_hyper_parameters",
    "no initial_lr": "test_changes_in_place",
    "the device's decay does not enter the gradient": "test_changes_in_place",
    "the device's metric decay ignores decouple_lr": "test_changes_in_place",
    "the device's decay ignores the momentum": "test_changes_in_place",
    "device_scalars ignores that a gradient is negated": "test_negated_gradients",
    "device_scalars ignores first buffers": "test_changes_in_place",
    "a skipped step is counted": "test_nothing_changes_on_overflow",
    "the clip coefficient is ignored": "test_same_as_scaled_gradients",
    "the norm includes removed gradients": "test_norm_is_over_all_groups",
    "an empty tensor is not counted": "test_norm_below_the_limit_changes_nothing",
    "device_scalars misses every other block": "test_many_tensors",
    "decide misses the last tensor": "test_two_plans_give_the_bits_of_one",
    "decide ignores deferred rows": "test_two_plans_give_the_bits_of_one",
    "device_scalars counts for every dtype": "test_capturable_and_other_groups",
    "device_scalars counts without a gradient": "test_many_tensors",
    "upload begins too early": "test_many_tensors",
    "scalars beyond the arguments": "test_step_counts_that_differ",
    "the first buffer is always one": "test_changes_in_place",
    "an address is uploaded once": "test_some_tensors_without_a_gradient",
}


def build(folder: Path = ROOT / "build/cuda-mutants") -> Path:
    """Builds the module with all mutants; returns its path."""
    emulated.build()
    write_sources(folder, "cpu", [emulated.HERE], MUTANTS, emulated.HERE / "module.cpp")
    # Without mutants, and mostly pybind11.
    bindings = {path: emulated.object_of(path) for path in emulated.BINDINGS if path.name != "module.cpp"}
    return emulated.build("quick", folder, bindings)


def outcome(switch: ctypes.c_int, number: int, first: int | str) -> tuple[int | str, str] | None:
    """The number and message of a check that fails with the mutant, run in a child process, or None. first: the number or name
    of the check to run first."""
    to_read, to_write = os.pipe()
    child = os.fork()
    if child == 0:
        import checks

        os.close(to_read)
        signal.alarm(SECONDS)
        switch.value = number
        try:
            noticed = checks.first_failure(checks.cuda(), first)
        except BaseException as error:
            noticed = first, repr(error)
        if noticed:
            os.write(to_write, f"{noticed[0]} {noticed[1]}".encode()[:10_000])
        os._exit(0)
    os.close(to_write)
    with os.fdopen(to_read, "rb") as pipe:
        check, _, said = pipe.read().decode(errors="replace").partition(" ")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return first, f"ended by signal {os.WTERMSIG(status)}"
    return (int(check), said) if check else None


def main() -> None:
    import torch

    import checks  # noqa: F401  once, not in every child
    from emulated_backend import emulated

    # A pool of threads would not survive a fork.
    torch.set_num_threads(1)
    torch.set_num_threads = lambda _: None
    switch = ctypes.c_int.in_dll(ctypes.CDLL(emulated.__file__), "onepass_mutant")
    answers, quiet = os.fdopen(os.dup(1), "w"), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    check: int | str = 0
    for line in sys.stdin:
        # The check that fails with one mutant mostly fails with the next one, which changes code nearby.
        name = MUTANTS[int(line) - 1].name if int(line) else ""
        noticed = outcome(switch, int(line), NOTICED_BY.get(name, check))
        check, said = noticed or (check, None)
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
