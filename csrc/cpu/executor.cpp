#include "executor.h"

#include <algorithm>

namespace onepass {

CpuExecutor::CpuExecutor(Plan& plan)
    : plan_(plan), tensor_steps_(plan.tensors.size()), stats_(plan.tensors.size()), verdicts_(plan.tensors.size()) {
  for (size_t i = 0; i < plan.tensors.size(); ++i) plan.cut(i, item_elements, item_elements);
  coefficients_.resize(plan.coefficients);
  row_stats_.resize(plan.items.size());
  row_sums_.resize(plan.split_rows);
}

void CpuExecutor::use(int threads) {
  threads_ = threads;
  if (static_cast<int>(scratch_.size()) < threads) scratch_.resize(threads);
}

std::vector<double> CpuExecutor::square_sums(int threads) {
  use(threads);
  queue_.clear();
  add_active_items();
  const std::vector<int64_t> items = queue_;
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    const Tensor& t = plan_.tensors[item.tensor];
    row_stats_[index].sums.gg = kernels(plan_.key(t)).square_sum(tile_of(item, index, scratch));
  });
  std::vector<double> sums(plan_.tensors.size());
  for (int64_t index : items) sums[plan_.items[index].tensor] += row_stats_[index].sums.gg;
  return sums;
}

void CpuExecutor::begin(int threads, double factor) {
  use(threads);
  queue_.clear();  // items of a step that was given up
  // Tensors of one group mostly share their step count, and so their scalars: computed once for a run of such tensors.
  Scalars scalars{};
  int group = -1;
  float count = 0;
  bool first = false, negated = false;
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    Tensor& t = plan_.tensors[i];
    tensor_steps_[i].gated = t.active && t.projected;
    if (!t.active) continue;
    float own_count = 0;
    if (t.step) own_count = *t.step + 1;
    if (t.group != group || own_count != count || t.first_step != first || t.negated != negated) {
      group = t.group, count = own_count, first = t.first_step, negated = t.negated;
      Hyper h = plan_.hypers[group];
      h.grad_scale *= factor;
      if (negated) h.grad_scale = -h.grad_scale;
      scalars = scalars_of(h, plan_.rule, count, first && plan_.lazy_buffer);
    }
    begin_step(static_cast<int>(i), scalars);
  }
}

void CpuExecutor::begin_step(int tensor, const Scalars& scalars) {
  const Tensor& t = plan_.tensors[tensor];
  TensorStep& step = tensor_steps_[tensor];
  step.scalars = scalars;
  step.kernels = &kernels(plan_.key(t));
  step.unprojected = scalars.projection.affine(Gate::none, 0);
  if (!t.projected) {
    step.predicts = step.speculates = step.needs_sums = false;
    step.policy = WritePolicy::now;
    return;
  }
  step.predicts = plan_.predicts(t);
  step.speculates = plan_.speculates(t);
  choose_policy(step, t, step.predicts ? predicted(scalars.projection, *t.gate_counter) : Gate::none);
}

// Chooses the write policy for the predicted or known gate.
void CpuExecutor::choose_policy(TensorStep& step, const Tensor& t, Gate gate) const {
  step.policy = step.speculates && !step.predicts ? WritePolicy::deferred
                                                  : write_policy_for(gate, t.length <= item_elements && !t.split);
  step.needs_sums = step.speculates || gate != Gate::none;
}

// For the tensors that do not speculate: sums of p and g, and from them the gate, before the update.
void CpuExecutor::gate_stats() {
  auto decided_before_update = [this](size_t i) { return tensor_steps_[i].gated && !tensor_steps_[i].speculates; };
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (decided_before_update(i)) add_items(static_cast<int>(i));
  if (queue_.empty()) return;
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    row_stats_[index] = tensor_steps_[item.tensor].kernels->gate_stats(tile_of(item, index, scratch));
  });
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    if (!decided_before_update(i)) continue;
    combine(static_cast<int>(i));
    verdicts_[i] = verdict_on(static_cast<int>(i));
    choose_policy(tensor_steps_[i], plan_.tensors[i], verdicts_[i].gate);
  }
}

void CpuExecutor::update() {
  add_active_items();
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    const TensorStep& step = tensor_steps_[item.tensor];
    const Tile tile = tile_of(item, index, scratch);
    if (step.needs_sums)
      row_stats_[index] = step.kernels->update(tile);
    else
      step.kernels->step(tile);
    scatter_back(item, tile, {true, true});
  });
  if (!plan_.exchanges) return;  // `decide` combines them, one pass over the tensors less
  // Of tensors without a gradient, what the last exchange has left.
  std::fill(stats_.begin(), stats_.end(), TensorStats{});
  std::fill(row_sums_.begin(), row_sums_.end(), RowSums{});
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (tensor_steps_[i].gated) combine(static_cast<int>(i));
}

// The verdict on every gated tensor from the statistics of its update; queues the items that need a correction.
void CpuExecutor::decide() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    const TensorStep& step = tensor_steps_[i];
    if (!step.gated) continue;
    if (step.needs_sums && !plan_.exchanges) combine(static_cast<int>(i));
    const Projection& pr = step.scalars.projection;
    Verdict& v = verdicts_[i];
    if (step.speculates)
      v = verdict_on(static_cast<int>(i));
    else if (step.needs_sums)
      v = completed(v, pr, stats_[i].sums.pu);
    v.policy = step.policy;
    v.corrected = step.predicts && mispredicted(pr, step.policy, v.gate);
    v.needs_correction = v.corrected || (step.needs_sums && step.deferred);
    uint8_t& counter = *plan_.tensors[i].gate_counter;
    counter = next_counter(counter, v.gate);
    if (v.needs_correction) add_items(static_cast<int>(i));
  }
}

void CpuExecutor::correct() {
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    const TensorStep& step = tensor_steps_[item.tensor];
    const Verdict& v = verdicts_[item.tensor];
    const Tile tile = tile_of(item, index, scratch);
    step.kernels->correct(tile, {v.policy, step.unprojected, v.gate, v.layer_coefficient});
    scatter_back(item, tile, {true, step.scalars.project_momentum});
  });
  for (Tensor& t : plan_.tensors) {
    if (!t.active) continue;
    if (t.step) *t.step += 1;
    t.first_step = false;
  }
}

Verdict CpuExecutor::verdict_on(int tensor) const {
  const Tensor& t = plan_.tensors[tensor];
  const double unit =
      t.storage.param == Dtype::f64 ? 0x1p-53 : 0x1p-24;  // float32 products are added up in float32 first
  return verdict_of(tensor_steps_[tensor].scalars.projection, stats_[tensor], double(t.whole_length), unit);
}

// Combines the statistics of a tensor in the order of its items, and completes the rows that were cut into pieces, but
// for split rows.
void CpuExecutor::combine(int tensor) {
  const Tensor& t = plan_.tensors[tensor];
  TensorStep& step = tensor_steps_[tensor];
  RowStats all;
  RowSums row;
  for (int64_t index = t.first_item; index < t.first_item + t.items; ++index) {
    const WorkItem& item = plan_.items[index];
    all.add(row_stats_[index]);
    if (item.whole_rows(t)) continue;
    row.add(row_stats_[index].sums);
    if (item.end < t.length) continue;
    if (t.split) row_sums_[t.first_split_row + item.row] = row;
    const CompletedRow done = complete_row(step.scalars.projection, row);
    all.max_cosine_squared = max_or_nan(all.max_cosine_squared, done.cosine_squared);
    coefficients_[t.first_coefficient + item.row] = done.c;
    row = {};
  }
  stats_[tensor] = {all.sums, all.max_cosine_squared, double(t.rows)};
  step.deferred = all.deferred;
}

}  // namespace onepass
