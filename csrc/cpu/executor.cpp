#include "executor.h"

#include "strided.h"

#include <algorithm>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace onepass {

namespace {

int this_thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

}  // namespace

CpuExecutor::CpuExecutor(Plan& plan)
    : plan_(plan), tensor_steps_(plan.tensors.size()), stats_(plan.tensors.size()), verdicts_(plan.tensors.size()) {
  for (size_t i = 0; i < plan.tensors.size(); ++i) plan.cut(i, item_elements, item_elements);
  coefficients_.resize(plan.coefficients);
  row_stats_.resize(plan.items.size());
}

void CpuExecutor::use(int threads) {
  threads_ = threads;
  if (static_cast<int>(scratch_.size()) < threads) scratch_.resize(threads);
}

double CpuExecutor::square_sum(int threads) {
  use(threads);
  add_active_items();
  const std::vector<int64_t> items = queue_;
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    const Tensor& t = plan_.tensors[item.tensor];
    row_stats_[index].sums.gg = kernels(t.dtype, plan_.rule_id(t.group)).square_sum(tile_of(item, index, scratch));
  });
  double sum = 0;
  for (int64_t index : items) sum += row_stats_[index].sums.gg;
  return sum;
}

void CpuExecutor::begin(int threads, double factor) {
  use(threads);
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
    if (t.step) own_count = *t.step += 1;
    if (t.group != group || own_count != count || t.first_step != first || t.negated != negated) {
      group = t.group, count = own_count, first = t.first_step, negated = t.negated;
      Hyper h = plan_.hypers[group];
      h.grad_scale *= factor;
      if (negated) h.grad_scale = -h.grad_scale;
      scalars = scalars_of(h, plan_.rule, count, first && plan_.lazy_buffer);
    }
    begin_step(static_cast<int>(i), scalars);
    t.first_step = false;
  }
}

void CpuExecutor::begin_step(int tensor, const Scalars& scalars) {
  const Tensor& t = plan_.tensors[tensor];
  TensorStep& step = tensor_steps_[tensor];
  step.scalars = scalars;
  step.kernels = &kernels(t.dtype, plan_.rule_id(t.group));
  step.unprojected = scalars.projection.affine(Gate::none, 0);
  step.predicts = plan_.predicts(t);
  step.speculates = plan_.speculates(t);
  choose_policy(step, t, step.predicts ? predicted(scalars.projection, *t.gate_counter) : Gate::none);
}

// Chooses the write policy for the predicted or known gate.
void CpuExecutor::choose_policy(TensorStep& step, const Tensor& t, Gate gate) const {
  step.policy =
      step.speculates && !step.predicts ? WritePolicy::deferred : write_policy_for(gate, t.length <= item_elements);
  step.needs_sums = step.gated && (step.speculates || gate != Gate::none);
}

// For the tensors that do not speculate: sums of p and g, and from them the gate, before the update.
void CpuExecutor::gate_stats() {
  auto is_first = [this](size_t i) { return tensor_steps_[i].gated && !tensor_steps_[i].speculates; };
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (is_first(i)) add_items(static_cast<int>(i));
  if (queue_.empty()) return;
  run_items([this](const WorkItem& item, int64_t index, Scratch& scratch) {
    row_stats_[index] = tensor_steps_[item.tensor].kernels->gate_stats(tile_of(item, index, scratch));
  });
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    if (!is_first(i)) continue;
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
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (tensor_steps_[i].gated && tensor_steps_[i].needs_sums) combine(static_cast<int>(i));
}

// The verdict on every gated tensor from the statistics of its update; queues the items that need a correction.
void CpuExecutor::decide() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    const TensorStep& step = tensor_steps_[i];
    if (!step.gated) continue;
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
}

Verdict CpuExecutor::verdict_on(int tensor) const {
  const Tensor& t = plan_.tensors[tensor];
  const double unit = t.dtype == Dtype::f64 ? 0x1p-53 : 0x1p-24;  // float32 products are added up in float32 first
  return verdict_of(tensor_steps_[tensor].scalars.projection, stats_[tensor], double(t.length), unit);
}

// Combines the statistics of a tensor in the order of its items, and completes the rows that were cut into pieces.
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
    const CompletedRow done = complete_row(step.scalars.projection, row);
    all.max_cosine_squared = max_or_nan(all.max_cosine_squared, done.cosine_squared);
    coefficients_[t.first_coefficient + item.row] = done.c;
    row = {};
  }
  stats_[tensor] = {all.sums, all.max_cosine_squared, double(t.rows)};
  step.deferred = all.deferred;
}

// ---------------------------------------------------------------- items

void CpuExecutor::add_items(int tensor) {
  const Tensor& t = plan_.tensors[tensor];
  for (int64_t index = t.first_item; index < t.first_item + t.items; ++index) queue_.push_back(index);
}

void CpuExecutor::add_active_items() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (plan_.tensors[i].active) add_items(static_cast<int>(i));
}

// Runs `work` on the queued items in batches of neighbours, and empties the queue. A batch is large, so that a thread
// reads each stream for long (items handed out one by one took 8% longer, 124 M parameters on 2 cores), but there
// are at least 16 for each thread, so that a thread that was held up does not hold up the others.
void CpuExecutor::run_items(const Work& work) {
  int64_t elements = 0;
  for (int64_t index : queue_) elements += plan_.items[index].elements();
  const int64_t batch = std::clamp(elements / (16 * threads_), item_elements, 16 * item_elements);
  batches_.clear();
  elements = 0;
  for (size_t i = 0; i < queue_.size(); ++i) {
    elements += plan_.items[queue_[i]].elements();
    if (elements < batch && i + 1 < queue_.size()) continue;
    batches_.push_back(static_cast<int64_t>(i) + 1);
    elements = 0;
  }
  auto run_batch = [&](int64_t b, Scratch& scratch) {
    for (int64_t i = b ? batches_[b - 1] : 0; i < batches_[b]; ++i) work(plan_.items[queue_[i]], queue_[i], scratch);
  };
  const int64_t count = static_cast<int64_t>(batches_.size());
  // Two batches are worth a second thread: a 256 x 256 tensor took 0.65 of the time on 2 cores, 0.7 when the thread had
  // slept.
  const int workers = static_cast<int>(std::min<int64_t>(threads_, count));
  if (workers <= 1) {  // no parallel region at all: entering one costs more than a small model's step
    for (int64_t b = 0; b < count; ++b) run_batch(b, scratch_[0]);
  } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(workers)
    for (int64_t b = 0; b < count; ++b) run_batch(b, scratch_[this_thread()]);
  }
  queue_.clear();
}

Tile CpuExecutor::tile_of(const WorkItem& item, int64_t index, Scratch& scratch) {
  const Tensor& t = plan_.tensors[item.tensor];
  const TensorStep& step = tensor_steps_[item.tensor];
  const int64_t elements = item.elements(), first = item.row * t.length + item.begin;
  const int64_t bytes = bytes_of(t.dtype), work_bytes = work_bytes_of(t.dtype);

  auto operand = [&](const View& view, int64_t element_bytes, std::vector<char>& buffer) -> void* {
    if (!view.data) return nullptr;
    if (t.packed) return static_cast<char*>(view.data) + first * element_bytes;
    if (static_cast<int64_t>(buffer.size()) < elements * element_bytes) buffer.resize(elements * element_bytes);
    gather(t, view, element_bytes, item, buffer.data());
    return buffer.data();
  };
  Tile tile{};
  tile.p = operand(t.p, bytes, scratch.operand[0]);
  tile.g = operand(t.g, bytes, scratch.operand[1]);
  for (int j = 0; j < max_moments; ++j) tile.moment[j] = operand(t.moment[j], work_bytes, scratch.operand[2 + j]);
  tile.rows = item.rows;
  tile.length = item.end - item.begin;
  tile.scalars = &step.scalars;
  tile.policy = step.policy;
  tile.unprojected = step.unprojected;
  if (t.projected) {
    tile.coefficient = &coefficients_[t.first_coefficient + item.row];
    tile.piece = !item.whole_rows(t);
    tile.deferred = row_stats_[index].deferred;
    if (static_cast<int64_t>(scratch.row.size()) < tile.length * work_bytes)
      scratch.row.resize(tile.length * work_bytes);
    tile.row_cache = scratch.row.data();
  }
  return tile;
}

void CpuExecutor::scatter_back(const WorkItem& item, const Tile& tile, Writes writes) const {
  const Tensor& t = plan_.tensors[item.tensor];
  if (t.packed) return;
  if (writes.p) scatter(t, t.p, bytes_of(t.dtype), item, tile.p);
  for (int j = 0; j < max_moments; ++j)
    if (writes.moments && t.moment[j].data) scatter(t, t.moment[j], work_bytes_of(t.dtype), item, tile.moment[j]);
}

}  // namespace onepass
