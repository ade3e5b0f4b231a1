// Who works on an item: a warp on a small one, the block on any other. Within a crew, rows are shared out to teams: 1
// to 32 lanes of a warp, or the whole block. Sums are taken in one fixed order.
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

// Sums over teams of `width` lanes; every lane gets the bits of the same sum.
__device__ __forceinline__ RowSums sum_lanes(RowSums s, int width) {
  for (int step = width / 2; step > 0; step /= 2)
    s.add({__shfl_xor_sync(all_lanes, s.pg, step), __shfl_xor_sync(all_lanes, s.pp, step),
           __shfl_xor_sync(all_lanes, s.gg, step), __shfl_xor_sync(all_lanes, s.pu, step)});
  return s;
}

__device__ __forceinline__ Report join_lanes(Report r) {
  r.sums = sum_lanes(r.sums, warp_size);
  for (int step = warp_size / 2; step > 0; step /= 2)
    r.max_cosine_squared = max_or_nan(r.max_cosine_squared, __shfl_xor_sync(all_lanes, r.max_cosine_squared, step));
  r.deferred = __any_sync(all_lanes, r.deferred);
  return r;
}

// What the update decides for a row once its sums are known.
struct RowStep {
  Affine step;
  double c;
  bool left_alone;
};

// A block's shared memory: its board, then room for rows.
extern __shared__ __align__(16) unsigned char onepass_room[];

// The part of shared memory that crews talk through.
struct Board {
  RowSums sums[warps];
  Report report[warps];
  RowStep row_step;
  bool last;
};

// What both crews do: each warp gathers the reports of its rows on the board.
struct Gathering {
  __device__ static void clear(Board& board) {
    if (lane() == 0) board.report[warp()] = {};
  }

  // Adds the reports of the first lanes of all teams in the warp; the others bring an empty one.
  __device__ static void report(Report r, int width, Board& board) {
    if (width < warp_size) r = join_lanes(r);
    if (lane() == 0) board.report[warp()].add(r);
  }
};

struct Warp : Gathering {
  static constexpr int size = warp_size;
  __device__ static int rank() { return lane(); }
  __device__ static void sync() { __syncwarp(); }

  // The sum over a team; valid in its first lane at least.
  __device__ static RowSums sum(const RowSums& s, int width, Board&) { return sum_lanes(s, width); }
  // The first lane's row step, told to all lanes of the team. A team of a warp has computed it in every lane.
  __device__ static RowStep tell(const RowStep& r, int, Board&) { return r; }
  __device__ static bool tell(bool x, Board&) { return __shfl_sync(all_lanes, int(x), 0); }
  // All reports on the board put together; valid in the first lane.
  __device__ static Report join(Board& board) { return board.report[warp()]; }
};

struct Block : Gathering {
  static constexpr int size = block_size;
  __device__ static int rank() { return threadIdx.x; }
  __device__ static void sync() { __syncthreads(); }

  __device__ static RowSums sum(RowSums s, int width, Board& board) {
    if (width <= warp_size) return sum_lanes(s, width);
    s = sum_lanes(s, warp_size);
    if (lane() == 0) board.sums[warp()] = s;
    sync();
    if (rank() == 0)
      for (int w = 1; w < warps; ++w) s.add(board.sums[w]);
    return s;
  }
  __device__ static RowStep tell(const RowStep& r, int width, Board& board) {
    if (width <= warp_size) return r;
    if (rank() == 0) board.row_step = r;
    sync();
    return board.row_step;
  }
  __device__ static bool tell(bool x, Board& board) {
    if (rank() == 0) board.last = x;
    sync();
    return board.last;
  }
  __device__ static Report join(Board& board) {
    sync();
    Report r = board.report[0];
    if (rank() == 0)
      for (int w = 1; w < warps; ++w) r.add(board.report[w]);
    return r;
  }
};

}  // namespace onepass::cuda
