// Thread groups: a warp steps a small item, a block any other. Within a group each row is stepped by a subgroup, 1 to
// 32 lanes of a warp or the whole block. Sums are taken in one fixed order.
#pragma once

#include "plan.cuh"

namespace onepass::cuda {

constexpr unsigned all_lanes = 0xffffffff;

__device__ __forceinline__ int lane() {
  return threadIdx.x % warp_size;
}
__device__ __forceinline__ int warp() {
  return threadIdx.x / warp_size;
}

// Sums over subgroups of `width` lanes; every lane gets the bits of the same sum.
__device__ __forceinline__ RowSums sum_lanes(RowSums s, int width) {
  for (int step = width / 2; step > 0; step /= 2)
    s.add({__shfl_xor_sync(all_lanes, s.pg, step), __shfl_xor_sync(all_lanes, s.pp, step),
           __shfl_xor_sync(all_lanes, s.gg, step), __shfl_xor_sync(all_lanes, s.pu, step)});
  return s;
}

__device__ __forceinline__ RowStats join_lanes(RowStats r) {
  r.sums = sum_lanes(r.sums, warp_size);
  for (int step = warp_size / 2; step > 0; step /= 2)
    r.max_cosine_squared = max_or_nan(r.max_cosine_squared, __shfl_xor_sync(all_lanes, r.max_cosine_squared, step));
  r.deferred = __any_sync(all_lanes, r.deferred);
  return r;
}

// Shared memory of a block: SharedStorage, then the row cache.
extern __shared__ __align__(16) unsigned char onepass_shared[];

// Shared memory through which the threads of a group exchange values.
struct SharedStorage {
  RowSums sums[warps];
  RowStats stats[warps];
  RowDecision row_decision;
  bool last;
};

// Each warp collects the statistics of its rows in shared storage.
struct StatsCollector {
  __device__ static void clear(SharedStorage& shared) {
    if (lane() == 0) shared.stats[warp()] = {};
  }

  // Adds the statistics of the first lane of each subgroup in the warp; those of the other lanes are empty.
  __device__ static void collect(RowStats r, int width, SharedStorage& shared) {
    if (width < warp_size) r = join_lanes(r);
    if (lane() == 0) shared.stats[warp()].add(r);
  }
};

struct WarpGroup : StatsCollector {
  static constexpr int size = warp_size;
  __device__ static int rank() { return lane(); }
  __device__ static void sync() { __syncwarp(); }

  // The sum over a subgroup; valid in its first lane at least.
  __device__ static RowSums sum(const RowSums& s, int width, SharedStorage&) { return sum_lanes(s, width); }
  // The first lane's value, to all lanes of the subgroup. Within a warp every lane has computed it itself.
  __device__ static RowDecision broadcast(const RowDecision& r, int, SharedStorage&) { return r; }
  __device__ static bool broadcast(bool x, SharedStorage&) { return __shfl_sync(all_lanes, int(x), 0); }
  // All statistics in shared storage, combined; valid in the first lane.
  __device__ static RowStats join(SharedStorage& shared) { return shared.stats[warp()]; }
};

struct BlockGroup : StatsCollector {
  static constexpr int size = block_size;
  __device__ static int rank() { return threadIdx.x; }
  __device__ static void sync() { __syncthreads(); }

  __device__ static RowSums sum(RowSums s, int width, SharedStorage& shared) {
    if (width <= warp_size) return sum_lanes(s, width);
    s = sum_lanes(s, warp_size);
    if (lane() == 0) shared.sums[warp()] = s;
    sync();
    if (rank() == 0)
      for (int w = 1; w < warps; ++w) s.add(shared.sums[w]);
    return s;
  }
  __device__ static RowDecision broadcast(const RowDecision& r, int width, SharedStorage& shared) {
    if (width <= warp_size) return r;
    if (rank() == 0) shared.row_decision = r;
    sync();
    return shared.row_decision;
  }
  __device__ static bool broadcast(bool x, SharedStorage& shared) {
    if (rank() == 0) shared.last = x;
    sync();
    return shared.last;
  }
  __device__ static RowStats join(SharedStorage& shared) {
    sync();
    RowStats r = shared.stats[0];
    if (rank() == 0)
      for (int w = 1; w < warps; ++w) r.add(shared.stats[w]);
    return r;
  }
};

}  // namespace onepass::cuda
