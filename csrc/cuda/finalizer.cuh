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
      if (lane() == 0) store(plan.coefficients + t.first_coefficient + r, pr.coefficient(sums), of_stats);
      largest = max_or_nan(largest, pr.cosine_squared(sums));
    }
    return largest;
  }

  // The gate of the tensor, from the sums of all its items.
  __device__ DeviceVerdict decide(const RowStats& all) const {
    const Projection& pr = o.scalars->projection;
    const Verdict v = verdict_of(pr, all, double(o.t->rows), double(o.t->length), 0x1p-53);
    uint8_t* counter = o.t->gate_counter;
    store(counter, next_counter(load(counter, of_plan), v.gate), of_plan);
    return {v.gate, WritePolicy::now, 0, 0, v.scaled_cosine, pr.coefficient(v.sums), v.sums};
  }

  __device__ void finalize_square_sum() const {
    const RowStats all = gather(false);
    if (Group::rank() == 0) store(plan.square_sums + o.tensor, all.sums.gg, of_stats);
  }

  __device__ void finalize_gate_stats() const {
    const RowStats all = gather();
    if (Group::rank() == 0) store(plan.verdicts + o.tensor, decide(all), of_stats);
  }

  // The verdict of a tensor that speculates. One that does not has its gate from `gate_stats`, and lacks <p,u>.
  __device__ void finalize_update(WritePolicy policy) const {
    const RowStats all = gather();
    if (Group::rank() != 0) return;
    DeviceVerdict* verdict = plan.verdicts + o.tensor;
    DeviceVerdict v;
    if (o.t->speculates) {
      v = decide(all);
      v.corrected = o.scalars->projection.fixed_gate == no_fixed_gate &&
                    v.gate != (policy == WritePolicy::now ? Gate::none : Gate::channel);
    } else {
      v = load(verdict, of_stats);
      v.sums.pu = all.sums.pu;
      v.layer_coefficient = o.scalars->projection.coefficient(v.sums);
    }
    v.policy = policy;
    v.needs_correction = v.corrected || all.deferred;
    store(verdict, v, of_stats);
  }
};

}  // namespace onepass::cuda
