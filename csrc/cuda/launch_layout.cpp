#include "launch_layout.h"

#include <algorithm>

namespace onepass::cuda {

namespace {

// Elements of an item. A block does one in a few microseconds, so that blocks end a step together; a tensor of so few
// elements that a warp can do it alone goes to a warp.
constexpr int64_t item_elements = 8192;
constexpr int64_t warp_elements = 2048;

int64_t lanes_of(const Tensor& t) {
  return t.packed ? 16 / bytes_of(t.dtype) : 1;
}

// Shared memory in which each thread of a block keeps p and u of one vector.
int64_t slot_bytes(const Tensor& t) {
  return 2 * work_bytes_of(t.dtype) * lanes_of(t) * block_size;
}

// Elements of a row that `threads` threads can cache. One vector more than its elements fill, as its ends may lie
// across 16-byte boundaries.
int64_t elements_cached(const Tensor& t, int row_cache_bytes, int threads) {
  return std::max<int64_t>(0, (row_cache_bytes / slot_bytes(t) * threads - 1) * lanes_of(t));
}

int row_cache_of(const Limits& limits, int blocks, int shared_storage_bytes) {
  const int share = limits.shared_per_multiprocessor / blocks - limits.reserved_per_block;
  return (std::min(share, limits.shared_per_block) - shared_storage_bytes) / 8192 * 8192;  // a slot of any dtype
}

bool goes_to_a_warp(const Tensor& t, int row_cache_bytes) {
  if (!t.packed || t.elements() > warp_elements) return false;
  return !t.projected || t.length <= elements_cached(t, row_cache_bytes, warp_size);
}

void cut(Plan& plan, int tensor, int row_cache_bytes) {
  const Tensor& t = plan.tensors[tensor];
  const int64_t longest = longest_row(t, row_cache_bytes);
  if (!t.projected) {
    plan.cut(tensor, item_elements, item_elements);
  } else if (t.length > longest) {
    plan.cut(tensor, longest, longest);
  } else if (t.length <= elements_cached(t, row_cache_bytes, warp_size)) {
    // A row to each warp or less: as many rows as keep all warps busy.
    const int64_t round = warps * std::max<int64_t>(1, t.length);
    plan.cut(tensor, std::max<int64_t>(1, item_elements / round) * round, longest);
  } else {
    plan.cut(tensor, 2 * item_elements, longest);  // a few of the long rows, which share the cost of starting an item
  }
}

}  // namespace

int64_t longest_row(const Tensor& t, int row_cache_bytes) {
  return elements_cached(t, row_cache_bytes, block_size);
}

LaunchLayout launch_layout_of(Plan& plan, const Limits& limits, int shared_storage_bytes) {
  // Three blocks to a multiprocessor keep its memory busy, and are as many as the registers allow; two, where that lets
  // a longer row stay whole.
  LaunchLayout layout{};
  const int third = row_cache_of(limits, 3, shared_storage_bytes), half = row_cache_of(limits, 2, shared_storage_bytes);
  layout.row_cache_bytes = third;
  for (const Tensor& t : plan.tensors)
    if (t.projected && t.length > longest_row(t, third) && t.length <= longest_row(t, half))
      layout.row_cache_bytes = half;

  for (bool to_warps : {false, true}) {
    if (to_warps) layout.block_items = static_cast<int>(plan.items.size());
    for (size_t i = 0; i < plan.tensors.size(); ++i)
      if (goes_to_a_warp(plan.tensors[i], layout.row_cache_bytes) == to_warps)
        cut(plan, static_cast<int>(i), layout.row_cache_bytes);
  }
  return layout;
}

}  // namespace onepass::cuda
