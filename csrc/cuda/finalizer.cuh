// Final reduction: from the statistics of the items of a tensor to its gate, or to the square of its gradient's norm.
#pragma once

#include "memory.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

// The last thread group to finish an item of a tensor reduces the statistics of all its items and decides the gate.
template <class Group, class O>
struct Finalizer {
  const DevicePlan& plan;
  SharedStorage& shared;
  const O& o;

  // Publishes the statistics of an item, which are in shared storage. True for the group that finished the tensor's
  // last item.
  __device__ bool publish(unsigned index) const {
    const RowStats stats = Group::join(shared);
    bool last = false;
    if (Group::rank() == 0) {
      store(plan.row_stats + index, stats, of_stats);
      unsigned* arrived = plan.arrivals + o.tensor;
      __threadfence();
      last = atomicAdd(arrived, 1u) + 1 == unsigned(o.t->items);
      __threadfence();
      if (last) store(arrived, 0u, of_stats);
    }
    return Group::broadcast(last, shared);
  }

  __device__ RowStats load_stats(int64_t item) const {
    const RowStats* from = plan.row_stats + item;
    return {{load_fresh(&from->sums.pg, of_stats), load_fresh(&from->sums.pp, of_stats),
             load_fresh(&from->sums.gg, of_stats), load_fresh(&from->sums.pu, of_stats)},
            load_fresh(&from->max_cosine_squared, of_stats),
            load_fresh(reinterpret_cast<const unsigned char*>(&from->deferred), of_stats) != 0};
  }

  // The statistics of the whole tensor, combined in an order that does not depend on which group finished when.
  __device__ RowStats gather(bool with_cosines = true) const {
    const DeviceTensor& t = *o.t;
    RowStats all;
    for (int i = Group::rank(); i < t.items; i += Group::size) all.add(load_stats(t.first_item + i));
    if (o.piece && with_cosines) all.max_cosine_squared = max_or_nan(all.max_cosine_squared, complete_rows());
    Group::clear(shared);
    Group::collect(all, 1, shared);
    return Group::join(shared);
  }

  // Rows that were cut into pieces, a warp to each: stores their coefficients, returns the largest cosine squared.
  __device__ double complete_rows() const {
    const DeviceTensor& t = *o.t;
    const Projection& pr = o.scalars->projection;
    const int pieces = t.items / int(t.rows);
    double largest = 0;
    for (int r = Group::rank() / warp_size; r < t.rows; r += Group::size / warp_size) {
      RowSums sums;
      for (int i = lane(); i < pieces; i += warp_size) sums.add(load_stats(t.first_item + r * pieces + i).sums);
      sums = sum_lanes(sums, warp_size);
      const CompletedRow done = complete_row(pr, sums);
      if (lane() == 0) store(plan.coefficients + t.first_coefficient + r, done.c, of_stats);
      largest = max_or_nan(largest, done.cosine_squared);
    }
    return largest;
  }

  __device__ Verdict verdict_on(const TensorStats& all) const {
    return verdict_of(o.scalars->projection, all, double(o.t->length), 0x1p-53);
  }
  __device__ TensorStats stats_of(const RowStats& all) const {
    return {all.sums, all.max_cosine_squared, double(o.t->rows)};
  }
  __device__ void count(Gate gate) const {
    uint8_t* counter = o.t->gate_counter;
    store(counter, next_counter(load(counter, of_plan), gate), of_plan);
  }

  __device__ void finalize_square_sum() const {
    const RowStats all = gather(false);
    if (Group::rank() == 0) store(plan.square_sums + o.tensor, all.sums.gg, of_stats);
  }

  __device__ void finalize_gate_stats() const {
    const RowStats all = gather();
    if (Group::rank() != 0) return;
    const Verdict v = verdict_on(stats_of(all));
    count(v.gate);
    store(plan.verdicts + o.tensor, v, of_stats);
  }

  __device__ void finalize_update(WritePolicy policy) const {
    const RowStats all = gather();
    if (Group::rank() != 0) return;
    if (!plan.stats) return decide(stats_of(all), policy, all.deferred);
    store(plan.stats + o.tensor, stats_of(all), of_stats);
    store(&plan.verdicts[o.tensor].needs_correction, int(all.deferred), of_stats);
  }

  // The verdict of a tensor that speculates. One that does not has its gate from `gate_stats`, and lacks <p,u>.
  __device__ void decide(const TensorStats& all, WritePolicy policy, bool deferred) const {
    const Projection& pr = o.scalars->projection;
    Verdict* verdict = plan.verdicts + o.tensor;
    Verdict v;
    if (o.t->speculates) {
      v = verdict_on(all);
      count(v.gate);
      v.corrected = !o.t->deferred && mispredicted(pr, policy, v.gate);
    } else {
      v = completed(load(verdict, of_stats), pr, all.sums.pu);
    }
    v.policy = policy;
    v.needs_correction = v.corrected || deferred;
    store(verdict, v, of_stats);
  }
};

}  // namespace onepass::cuda
