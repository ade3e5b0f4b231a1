#include "launch_layout.h"

#include <algorithm>

namespace onepass::cuda {

namespace {

// Elements of an item. A block does one in a few microseconds, so that blocks end a step together; a tensor of so few
// elements that a warp can do it alone goes to a warp.
constexpr int64_t item_elements = 8192;
constexpr int64_t warp_elements = 2048;

int lanes_of(const Tensor& t) {
  return !t.packed ? 1 : t.storage.param == Dtype::f64 ? 2 : 4;
}

// Vectors of a block that a lane of the warp steps.
int vectors_of_block(const Tensor& t) {
  return block_length / (lanes_of(t) * warp_size);
}

int vectors_cached(const Tensor& t, RowCache cache, int row_cache_bytes) {
  return cached_vectors(cache, row_cache_bytes, static_cast<int>(work_bytes_of(t.storage.param)) * lanes_of(t));
}

// Elements of a row that `threads` threads can cache: whole blocks, or one vector more than its elements fill, as its
// ends may lie across boundaries.
int64_t elements_cached(const Tensor& t, RowCache cache, int row_cache_bytes, int threads) {
  const int64_t vectors = vectors_cached(t, cache, row_cache_bytes);
  if (t.storage.blocks()) return vectors / vectors_of_block(t) * threads / warp_size * block_length;
  return std::max<int64_t>(0, (vectors * threads - 1) * lanes_of(t));
}

// Shared memory of a block for its rows, if so many blocks share a multiprocessor.
int row_cache_bytes_of(const Limits& limits, int blocks, int shared_storage_bytes) {
  const int share = limits.shared_per_multiprocessor / blocks - limits.reserved_per_block;
  return (std::min(share, limits.shared_per_block) - shared_storage_bytes) / 4096 * 4096;  // p and u of a vector each
}

int vectors_of_row(const Tensor& t) {
  return static_cast<int>((t.length + lanes_of(t) - 1) / lanes_of(t));
}

// Lanes that share a row.
int width_of_rows(const Tensor& t, RowCache cache, int row_cache_bytes) {
  const int most = vectors_cached(t, cache, row_cache_bytes);
  if (t.storage.blocks()) return width_of_blocks(vectors_of_row(t), most, vectors_of_block(t), block_size);
  return subgroup_width(vectors_of_row(t), t.rows, most, block_size);
}

// The time of a projected tensor, in bytes of an element: those that it moves, over the share of the bandwidth that so
// many resident blocks can use, and over that of the lanes that have a vector.
double cost_of(const Tensor& t, int row_cache_bytes, int blocks) {
  constexpr double share[] = {0, 0.45, 0.75, 0.93, 0.96};  // of a copy, by the model in bench/
  const RowCache cache = row_cache_of(t, row_cache_bytes);
  // Where p is read again, 4 more, but mostly from the second-level cache: counted as one.
  const int bytes = cache == RowCache::p_and_u ? 28 : cache == RowCache::u ? 29 : 40;
  const int vectors = vectors_of_row(t), width = width_of_rows(t, cache, row_cache_bytes);
  const double busy = cache == RowCache::none ? 1 : double(vectors) / ((vectors + width - 1) / width * width);
  return double(t.elements()) * bytes / share[blocks] / busy;
}

// As many blocks as the registers allow, up to four, or fewer, where that keeps more rows whole.
int row_cache_bytes_of(const Plan& plan, const Limits& limits, int shared_storage_bytes) {
  int best = 0;
  double least = -1;
  for (int blocks = 4; blocks >= 2; --blocks) {
    const int bytes = row_cache_bytes_of(limits, blocks, shared_storage_bytes);
    double cost = 0;
    for (const Tensor& t : plan.tensors)
      if (t.projected && t.elements() > 0) cost += cost_of(t, bytes, blocks);
    if (least < 0 || cost < least) best = bytes, least = cost;
  }
  return best;
}

bool fits_a_warp(const Tensor& t, int row_cache_bytes) {
  return t.length <= elements_cached(t, row_cache_of(t, row_cache_bytes), row_cache_bytes, warp_size);
}

bool goes_to_a_warp(const Tensor& t, int row_cache_bytes) {
  static_assert(warp_elements < smallest_tensor_of_blocks, "goes_to_warps in kernels.cuh");
  if (!t.packed || t.elements() > warp_elements || (t.projected && t.split)) return false;
  return !t.projected || fits_a_warp(t, row_cache_bytes);
}

void cut(Plan& plan, int tensor, int row_cache_bytes) {
  const Tensor& t = plan.tensors[tensor];
  if (!t.projected || t.split) return plan.cut(tensor, item_elements, item_elements);
  const RowCache cache = row_cache_of(t, row_cache_bytes);
  const int64_t longest = elements_cached(t, cache, row_cache_bytes, block_size);
  if (cache == RowCache::none) {
    plan.cut(tensor, longest, longest);
  } else if (fits_a_warp(t, row_cache_bytes)) {
    // As many rows as keep all lanes busy.
    const int64_t round = block_size / width_of_rows(t, cache, row_cache_bytes) * std::max<int64_t>(1, t.length);
    plan.cut(tensor, std::max<int64_t>(1, item_elements / round) * round, longest);
  } else {
    // A few of the long rows, as many as come closest to an item.
    plan.cut(tensor, std::max<int64_t>(1, (item_elements + t.length / 2) / t.length) * t.length, longest);
  }
}

}  // namespace

RowCache row_cache_of(const Tensor& t, int row_cache_bytes) {
  if (t.split) return RowCache::none;
  for (RowCache cache : {RowCache::p_and_u, RowCache::u})
    if (t.length <= elements_cached(t, cache, row_cache_bytes, block_size)) return cache;
  return RowCache::none;
}

LaunchLayout launch_layout_of(Plan& plan, const Limits& limits, int shared_storage_bytes) {
  LaunchLayout layout{};
  layout.row_cache_bytes = row_cache_bytes_of(plan, limits, shared_storage_bytes);
  for (bool to_warps : {false, true}) {
    if (to_warps) layout.block_items = static_cast<int>(plan.items.size());
    for (size_t i = 0; i < plan.tensors.size(); ++i)
      if (goes_to_a_warp(plan.tensors[i], layout.row_cache_bytes) == to_warps)
        cut(plan, static_cast<int>(i), layout.row_cache_bytes);
  }
  return layout;
}

}  // namespace onepass::cuda
