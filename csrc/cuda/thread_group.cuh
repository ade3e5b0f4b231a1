// Thread groups: a warp steps a small item, a block any other. Within a group each row is stepped by a subgroup, 1 to
// 32 lanes of a warp or the whole block. Sums are taken in one fixed order.
//
// The warps of a block meet where they share a row, and where statistics are published, every few items. In between,
// each goes on to the next item by itself.
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

// The statistics of all lanes that are a multiple of `width`, in every one of them; those of the others are empty.
__device__ __forceinline__ RowStats join_lanes(RowStats r, int width) {
  for (int step = warp_size / 2; step >= width; step /= 2) {
    r.sums.add({__shfl_xor_sync(all_lanes, r.sums.pg, step), __shfl_xor_sync(all_lanes, r.sums.pp, step),
                __shfl_xor_sync(all_lanes, r.sums.gg, step), __shfl_xor_sync(all_lanes, r.sums.pu, step)});
    r.max_cosine_squared = max_or_nan(r.max_cosine_squared, __shfl_xor_sync(all_lanes, r.max_cosine_squared, step));
  }
  r.deferred = __any_sync(all_lanes, r.deferred);
  return r;
}

// Adds the statistics of the first lane of each subgroup to those of the warp.
__device__ __forceinline__ void collect(const RowStats& r, int width, RowStats& stats_of_warp) {
  const RowStats all = width < warp_size ? join_lanes(r, width) : r;
  if (lane() == 0) stats_of_warp.add(all);
}

// Shared memory of a block: SharedStorage, then the row cache.
extern __shared__ __align__(16) unsigned char onepass_shared[];

// The statistics of an item from its warps, until they are published.
struct FinishedItem {
  RowStats of_warp[warps];
  int index;  // of the item, or -1: it has none to publish
};

// Shared memory through which the threads of a block exchange values.
struct alignas(16) SharedStorage {
  RowSums sums[warps];
  RowDecision row_decision;
  FinishedItem finished[warps];  // one for each warp to publish
};

struct WarpGroup {
  static constexpr int size = warp_size;
  __device__ static int rank() { return lane(); }
  __device__ static void sync() { __syncwarp(); }

  // The sum over a subgroup; valid in its first lane at least.
  __device__ static RowSums sum(const RowSums& s, int width, SharedStorage&) { return sum_lanes(s, width); }
  // The first lane's value, to all lanes of the subgroup. Within a warp every lane has computed it itself.
  __device__ static RowDecision broadcast(const RowDecision& r, int, SharedStorage&) { return r; }
};

struct BlockGroup {
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
};

}  // namespace onepass::cuda
