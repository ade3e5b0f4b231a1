// Final reduction: from the statistics of the items of a tensor to its gate, or to the square of its gradient's norm.
#pragma once

#include "memory.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

// Adds 1 to a counter of the device; returns what it was. Releases: whoever acquires after having read the result of
// this or a later addition sees what this thread has written, or has seen, before.
__device__ __forceinline__ unsigned add_release(unsigned* counter) {
#ifdef __CUDACC__
  unsigned before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], 1;"
               : "=r"(before)
               : "l"(__cvta_generic_to_global(counter))
               : "memory");
  return before;
#else
  return atomicAdd(counter, 1u);
#endif
}

// Acquires what was released to the counters that this thread has read.
__device__ __forceinline__ void acquire() {
#ifdef __CUDACC__
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Works for a warp. The warp that publishes the last item of a tensor reduces the statistics of all its items and
// decides the gate.
//
// Why it sees them, in the terms of the PTX memory model: lane 0 of every publishing warp stores the statistics of its
// item and then adds to the tensor's counter with .release (a release pattern on the counter). The additions are
// read-modify-writes, so that each continues the release sequence of those before. Lane 0 of the last warp reads the
// final count, and its fence.acq_rel after that read makes an acquire pattern: every store of statistics happens before
// the fence. __syncwarp orders the loads of the other lanes behind it. Only the last warp pays for the fence, which
// empties its multiprocessor's first-level cache; a release waits for the warp's own stores, and for nothing else.
template <class O>
struct Finalizer {
  const DevicePlan& plan;
  const O& o;

  // Publishes the statistics of an item. True, in all lanes, for the warp that published the tensor's last item.
  __device__ bool publish(int index, const RowStats& stats) const {
    bool last = true;
    if (lane() == 0) {
      store(plan.row_stats + unsigned(index), stats, of_stats);
      if (o.t->items > 1) {
        unsigned* arrived = plan.arrivals + o.tensor;
        last = add_release(arrived) + 1 == unsigned(o.t->items);
        if (last) acquire(), store(arrived, 0u, of_stats);
      }
    }
    last = __shfl_sync(all_lanes, int(last), 0);
    __syncwarp();
    return last;
  }

  __device__ RowStats load_stats(int64_t item) const {
    const RowStats* from = plan.row_stats + item;
    return {{load_fresh(&from->sums.pg, of_stats), load_fresh(&from->sums.pp, of_stats),
             load_fresh(&from->sums.gg, of_stats), load_fresh(&from->sums.pu, of_stats)},
            load_fresh(&from->max_cosine_squared, of_stats),
            load_fresh(reinterpret_cast<const unsigned char*>(&from->deferred), of_stats) != 0};
  }

  // The statistics of the whole tensor, combined in an order that does not depend on which warp finished when.
  __device__ RowStats gather(bool with_cosines = true) const {
    const DeviceTensor& t = *o.t;
    RowStats all;
    for (int i = lane(); i < t.items; i += warp_size) all.add(load_stats(t.first_item + i));
    if (o.piece && with_cosines) all.max_cosine_squared = max_or_nan(all.max_cosine_squared, complete_rows());
    return join_lanes(all, 1);
  }

  // Rows that were cut into pieces: stores their coefficients, returns the largest cosine squared. Of split rows,
  // stores the sums.
  __device__ double complete_rows() const {
    const DeviceTensor& t = *o.t;
    const Projection& pr = o.scalars->projection;
    const int pieces = t.items / int(t.rows);
    double largest = 0;
    for (int r = 0; r < t.rows; ++r) {
      RowSums sums;
      for (int i = lane(); i < pieces; i += warp_size) sums.add(load_stats(t.first_item + r * pieces + i).sums);
      sums = sum_lanes(sums, warp_size);
      if (t.split) {
        if (lane() == 0) store(plan.row_sums + t.first_split_row + r, sums, of_stats);
        continue;
      }
      const CompletedRow done = complete_row(pr, sums);
      if (lane() == 0) store(plan.coefficients + t.first_coefficient + r, done.c, of_stats);
      largest = max_or_nan(largest, done.cosine_squared);
    }
    return largest;
  }

  __device__ Verdict verdict_on(const TensorStats& all) const {
    return verdict_of(o.scalars->projection, all, double(o.t->whole_length), 0x1p-53);
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
    if (lane() == 0) store(plan.square_sums + o.tensor, all.sums.gg, of_stats);
  }

  __device__ void finalize_gate_stats() const {
    const RowStats all = gather();
    if (lane() != 0) return;
    const Verdict v = verdict_on(stats_of(all));
    count(v.gate);
    store(plan.verdicts + o.tensor, v, of_stats);
  }

  __device__ void finalize_update(WritePolicy policy) const {
    const RowStats all = gather();
    if (lane() != 0) return;
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
    if (v.needs_correction)
      store(plan.corrections + atomicAdd(plan.corrected, 1u), Correction{o.t->first_item, o.t->items}, of_stats);
  }
};

}  // namespace onepass::cuda
