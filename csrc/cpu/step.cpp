#include "step.h"

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

CpuStepper::CpuStepper(Plan& plan) : plan_(plan), courses_(plan.tensors.size()), verdicts_(plan.tensors.size()) {
  for (size_t i = 0; i < plan.tensors.size(); ++i) plan.cut(i, item_elements, item_elements);
  coefficients_.resize(plan.coefficients);
  reports_.resize(plan.items.size());
}

void CpuStepper::use(int threads) {
  threads_ = threads;
  if (static_cast<int>(scratch_.size()) < threads) scratch_.resize(threads);
}

double CpuStepper::square_sum(int threads) {
  use(threads);
  add_active_items();
  const std::vector<int64_t> items = queue_;
  run_items([this](const Item& item, int64_t index, Scratch& scratch) {
    const Tensor& t = plan_.tensors[item.tensor];
    reports_[index].sums.gg = kernels(t.dtype, plan_.family(t.group)).square_sum(tile_of(item, index, scratch));
  });
  double sum = 0;
  for (int64_t index : items) sum += reports_[index].sums.gg;
  return sum;
}

void CpuStepper::step(int threads, double factor) {
  use(threads);
  // Tensors of one group mostly share their step count, and with it their scalars.
  Scalars scalars{};
  int group = -1;
  float count = 0;
  bool first = false, negated = false;
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    Tensor& t = plan_.tensors[i];
    verdicts_[i].stepped = t.active && t.projected;
    if (!t.active) continue;
    float own_count = 0;
    if (t.step) own_count = *t.step += 1;
    if (t.group != group || own_count != count || t.first != first || t.negated != negated) {
      group = t.group, count = own_count, first = t.first, negated = t.negated;
      Hyper h = plan_.hypers[group];
      h.grad_scale *= factor;
      if (negated) h.grad_scale = -h.grad_scale;
      scalars = scalars_of(h, plan_.sgd, count, first && plan_.lazy_buffer);
    }
    set_course(static_cast<int>(i), scalars);
    t.first = false;
  }
  measure();
  update();
  settle();
}

void CpuStepper::set_course(int tensor, const Scalars& scalars) {
  const Tensor& t = plan_.tensors[tensor];
  Course& c = courses_[tensor];
  c.scalars = scalars;
  c.kernels = &kernels(t.dtype, plan_.family(t.group));
  c.through = scalars.projection.affine(Gate::none, 0);
  c.speculates = plan_.speculates(t);
  c.prediction = c.speculates ? predicted(*t.gate_counter) : Gate::none;
  choose_write(c, t);
}

// The way of writing that suits the gate that is predicted, or known.
void CpuStepper::choose_write(Course& c, const Tensor& t) const {
  const bool fits = t.length <= item_elements;
  c.write = write_for(c.prediction, fits);
  c.needs_sums = t.projected && (c.speculates || c.prediction != Gate::none);
}

// For the tensors that do not speculate: sums of p and g first, so that the update knows the gate.
void CpuStepper::measure() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (verdicts_[i].stepped && !courses_[i].speculates) add_items(i);
  if (queue_.empty()) return;
  run_items([this](const Item& item, int64_t index, Scratch& scratch) {
    reports_[index] = courses_[item.tensor].kernels->measure(tile_of(item, index, scratch));
  });
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    if (!verdicts_[i].stepped || courses_[i].speculates) continue;
    decide(static_cast<int>(i));
    courses_[i].prediction = verdicts_[i].gate;
    choose_write(courses_[i], plan_.tensors[i]);
  }
}

void CpuStepper::update() {
  add_active_items();
  run_items([this](const Item& item, int64_t index, Scratch& scratch) {
    const Course& c = courses_[item.tensor];
    const Tile tile = tile_of(item, index, scratch);
    if (c.needs_sums)
      reports_[index] = c.kernels->update(tile);
    else
      c.kernels->step(tile);
    put_back(item, tile, {true, true});
  });
}

void CpuStepper::settle() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (verdicts_[i].stepped) judge(i);
  run_items([this](const Item& item, int64_t index, Scratch& scratch) {
    const Course& c = courses_[item.tensor];
    const Tile tile = tile_of(item, index, scratch);
    c.kernels->settle(tile, {c.write, c.through, verdicts_[item.tensor].gate, c.layer_coefficient});
    put_back(item, tile, {true, c.scalars.project_momentum});
  });
}

// The verdict on one tensor from the sums of its update; queues it for settling where that is needed.
void CpuStepper::judge(int tensor) {
  Course& c = courses_[tensor];
  Verdict& v = verdicts_[tensor];
  bool deferred = false;
  if (c.speculates) {
    deferred = decide(tensor).deferred;
  } else if (c.needs_sums) {
    const Report all = add_up(tensor);
    v.sums.pu = all.sums.pu;
    deferred = all.deferred;
  }
  v.settled = v.gate != c.prediction;
  c.layer_coefficient = c.scalars.projection.coefficient(v.sums);
  uint8_t& counter = *plan_.tensors[tensor].gate_counter;
  counter = next_counter(counter, v.gate);
  if (v.settled || deferred) add_items(tensor);
}

// The gate of one tensor from the reports of its items.
Report CpuStepper::decide(int tensor) {
  const Tensor& t = plan_.tensors[tensor];
  const Report all = add_up(tensor);
  const double unit = t.dtype == Dtype::f64 ? 0x1p-53 : 0x1p-24;  // float32 products are added up in float32 first
  verdicts_[tensor] = verdict_of(courses_[tensor].scalars.projection, all, double(t.rows), double(t.length), unit);
  return all;
}

// Adds up the reports of a tensor in the order of its items, and completes the rows that were cut into pieces.
Report CpuStepper::add_up(int tensor) {
  const Tensor& t = plan_.tensors[tensor];
  const Projection& pr = courses_[tensor].scalars.projection;
  Report all;
  RowSums row;
  for (int64_t index = t.first_item; index < t.first_item + t.items; ++index) {
    const Item& item = plan_.items[index];
    all.add(reports_[index]);
    if (item.whole_rows(t)) continue;
    row.add(reports_[index].sums);
    if (item.end < t.length) continue;
    all.max_cosine_squared = max_or_nan(all.max_cosine_squared, pr.cosine_squared(row));
    coefficients_[t.first_coefficient + item.row] = pr.coefficient(row);
    row = {};
  }
  return all;
}

// ---------------------------------------------------------------- items

void CpuStepper::add_items(int tensor) {
  const Tensor& t = plan_.tensors[tensor];
  for (int64_t index = t.first_item; index < t.first_item + t.items; ++index) queue_.push_back(index);
}

void CpuStepper::add_active_items() {
  for (size_t i = 0; i < plan_.tensors.size(); ++i)
    if (plan_.tensors[i].active) add_items(static_cast<int>(i));
}

// Runs `work` on the queued items in batches of neighbours, and empties the queue. A batch is large, so that a thread
// reads each stream for long (items handed out one by one took 8% longer, 124 M parameters on 2 cores), but there
// are at least 16 for each thread, so that a thread that was held up does not hold up the others.
void CpuStepper::run_items(const Work& work) {
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
  const int team = static_cast<int>(std::min<int64_t>(threads_, count));
  if (team <= 1) {  // no parallel region at all: entering one costs more than a small model's step
    for (int64_t b = 0; b < count; ++b) run_batch(b, scratch_[0]);
  } else {
#pragma omp parallel for schedule(dynamic, 1) num_threads(team)
    for (int64_t b = 0; b < count; ++b) run_batch(b, scratch_[this_thread()]);
  }
  queue_.clear();
}

Tile CpuStepper::tile_of(const Item& item, int64_t index, Scratch& scratch) {
  const Tensor& t = plan_.tensors[item.tensor];
  const Course& c = courses_[item.tensor];
  const int64_t elements = item.elements(), first = item.row * t.length + item.begin;
  const int64_t bytes = bytes_of(t.dtype), work_bytes = work_bytes_of(t.dtype);

  auto operand = [&](const View& view, int64_t element_bytes, std::vector<char>& room) -> void* {
    if (!view.data) return nullptr;
    if (t.packed) return static_cast<char*>(view.data) + first * element_bytes;
    if (static_cast<int64_t>(room.size()) < elements * element_bytes) room.resize(elements * element_bytes);
    gather(t, view, element_bytes, item, room.data());
    return room.data();
  };
  Tile tile{};
  tile.p = operand(t.p, bytes, scratch.operand[0]);
  tile.g = operand(t.g, bytes, scratch.operand[1]);
  for (int j = 0; j < max_moments; ++j) tile.moment[j] = operand(t.moment[j], work_bytes, scratch.operand[2 + j]);
  tile.rows = item.rows;
  tile.length = item.end - item.begin;
  tile.scalars = &c.scalars;
  tile.write = c.write;
  tile.through = c.through;
  if (t.projected) {
    tile.coefficient = &coefficients_[t.first_coefficient + item.row];
    tile.piece = !item.whole_rows(t);
    tile.left_alone = reports_[index].deferred;
    if (static_cast<int64_t>(scratch.row.size()) < tile.length * work_bytes)
      scratch.row.resize(tile.length * work_bytes);
    tile.row_room = scratch.row.data();
  }
  return tile;
}

void CpuStepper::put_back(const Item& item, const Tile& tile, Writes writes) const {
  const Tensor& t = plan_.tensors[item.tensor];
  if (t.packed) return;
  if (writes.p) scatter(t, t.p, bytes_of(t.dtype), item, tile.p);
  for (int j = 0; j < max_moments; ++j)
    if (writes.moments && t.moment[j].data) scatter(t, t.moment[j], work_bytes_of(t.dtype), item, tile.moment[j]);
}

}  // namespace onepass
