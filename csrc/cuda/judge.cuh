// From the reports of items to what is known of a tensor: its gate, or the square of its gradient's norm.
#pragma once

#include "crew.cuh"
#include "memory.cuh"

namespace onepass::cuda {

// The end of an item, and of a tensor: the crew that finishes a tensor's last item finds all its reports, and judges
// it.
template <class Crew, class O>
struct Judge {
  const Frame& f;
  Board& board;
  const O& o;

  // Puts the report of an item that is on the board. True for the crew that did the last one of the tensor.
  __device__ bool put(unsigned index) const {
    const Report report = Crew::join(board);
    bool last = false;
    if (Crew::rank() == 0) {
      store(f.reports + index, report, of_reports);
      unsigned* ticket = f.tickets + o.tensor;
      __threadfence();
      last = atomicAdd(ticket, 1u) + 1 == unsigned(o.t->items);
      __threadfence();
      if (last) store(ticket, 0u, of_reports);
    }
    return Crew::tell(last, board);
  }

  __device__ Report fresh_report(int64_t item) const {
    const Report* from = f.reports + item;
    return {{load_fresh(&from->sums.pg, of_reports), load_fresh(&from->sums.pp, of_reports),
             load_fresh(&from->sums.gg, of_reports), load_fresh(&from->sums.pu, of_reports)},
            load_fresh(&from->max_cosine_squared, of_reports),
            load_fresh(reinterpret_cast<const unsigned char*>(&from->deferred), of_reports) != 0};
  }

  // All reports of the tensor put together, in an order that does not depend on who made them.
  __device__ Report gather(bool with_cosines = true) const {
    const DeviceTensor& t = *o.t;
    Report all;
    for (int i = Crew::rank(); i < t.items; i += Crew::size) all.add(fresh_report(t.first_item + i));
    if (o.piece && with_cosines) all.max_cosine_squared = max_or_nan(all.max_cosine_squared, complete_rows());
    Crew::clear(board);
    Crew::report(all, 1, board);
    return Crew::join(board);
  }

  // Rows that were cut into pieces, a warp to each: stores their coefficients, returns the largest cosine squared.
  __device__ double complete_rows() const {
    const DeviceTensor& t = *o.t;
    const Projection& pr = o.course->projection;
    const int pieces = t.items / int(t.rows);
    double largest = 0;
    for (int r = Crew::rank() / warp_size; r < t.rows; r += Crew::size / warp_size) {
      RowSums sums;
      for (int i = lane(); i < pieces; i += warp_size) sums.add(fresh_report(t.first_item + r * pieces + i).sums);
      sums = sum_lanes(sums, warp_size);
      if (lane() == 0) store(f.coefficients + t.first_coefficient + r, pr.coefficient(sums), of_reports);
      largest = max_or_nan(largest, pr.cosine_squared(sums));
    }
    return largest;
  }

  // The gate of the tensor, from the sums of all its items.
  __device__ DeviceVerdict decide(const Report& all) const {
    const Projection& pr = o.course->projection;
    const Verdict v = verdict_of(pr, all, double(o.t->rows), double(o.t->length), 0x1p-53);
    uint8_t* counter = o.t->gate_counter;
    store(counter, next_counter(load(counter, of_plan), v.gate), of_plan);
    return {v.gate, Write::through, 0, 0, v.scaled_cosine, pr.coefficient(v.sums), v.sums};
  }

  __device__ void squared() const {
    const Report all = gather(false);
    if (Crew::rank() == 0) store(f.square_sums + o.tensor, all.sums.gg, of_reports);
  }

  __device__ void measured() const {
    const Report all = gather();
    if (Crew::rank() == 0) store(f.verdicts + o.tensor, decide(all), of_reports);
  }

  // The verdict of a tensor that speculated; of one that was measured, what was still to be known.
  __device__ void updated(Write write) const {
    const Report all = gather();
    if (Crew::rank() != 0) return;
    DeviceVerdict* verdict = f.verdicts + o.tensor;
    DeviceVerdict v;
    if (o.t->speculates) {
      v = decide(all);
      v.settled = v.gate != (write == Write::through ? Gate::none : Gate::channel);
    } else {
      v = load(verdict, of_reports);
      v.sums.pu = all.sums.pu;
      v.layer_coefficient = o.course->projection.coefficient(v.sums);
    }
    v.write = write;
    v.settle = v.settled || all.deferred;
    store(verdict, v, of_reports);
  }
};

}  // namespace onepass::cuda
