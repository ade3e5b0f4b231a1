// Work items: the queue of a phase, its threads, and the operands of an item as a contiguous tile.
#include <algorithm>

#include "executor.h"
#include "strided.h"

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
  const int64_t bytes = bytes_of(t.storage.param), work_bytes = work_bytes_of(t.storage.param);

  auto operand = [&](const View& view, int64_t element_bytes, std::vector<char>& buffer) -> void* {
    if (!view.data) return nullptr;
    if (t.packed) return static_cast<char*>(view.data) + first * element_bytes;
    if (static_cast<int64_t>(buffer.size()) < elements * element_bytes) buffer.resize(elements * element_bytes);
    gather(t, view, element_bytes, item, buffer.data());
    return buffer.data();
  };
  Tile tile{};
  tile.p = operand(t.p, bytes, scratch.operand[0]);
  tile.g = operand(t.g, t.gradient_bytes(), scratch.operand[1]);
  tile.wide_gradient = t.wide_gradient;
  if (t.storage.master())
    tile.remainder = static_cast<int16_t*>(operand(t.remainder, 2, scratch.operand[2 + max_moments]));
  for (int j = 0; j < moments_of(plan_.rule_id(t.group)); ++j)
    tile.moment[j] = operand(t.moment[j], bytes_of(t.storage.moment), scratch.operand[2 + j]);
  tile.blocks = blocks_of(t.length);
  for (int j = 0; j < max_moments; ++j)
    if (t.scale[j]) tile.scale[j] = t.scale[j] + item.row * tile.blocks + item.begin / block_length;
  tile.rows = item.rows;
  tile.length = item.end - item.begin;
  tile.scalars = &step.scalars;
  tile.policy = step.policy;
  tile.unprojected = step.unprojected;
  tile.draw_key = step.scalars.draw_key.with(t.number);
  tile.first = t.first + item.row * t.whole_length + item.begin;
  tile.next_row = t.whole_length;
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
  if (writes.p) scatter(t, t.p, bytes_of(t.storage.param), item, tile.p);
  if (writes.p && t.storage.master()) scatter(t, t.remainder, 2, item, tile.remainder);
  for (int j = 0; j < moments_of(plan_.rule_id(t.group)); ++j)
    if (writes.moments && t.moment[j].data) scatter(t, t.moment[j], bytes_of(t.storage.moment), item, tile.moment[j]);
}

}  // namespace onepass
