// Launch layout: the size of the row cache, the cut of tensors into items, and which items blocks and warps take. A
// pure function of the plan's tensors and the device's limits.
#pragma once

#include "plan.cuh"

namespace onepass::cuda {

struct Limits {
  int multiprocessors;
  int shared_per_multiprocessor, shared_per_block, reserved_per_block;
};

struct LaunchLayout {
  int row_cache_bytes;  // shared memory of a block for rows
  int block_items;      // items of the tensors that blocks take; those that warps take follow
};

// What a row cache of so many bytes keeps of the rows of a tensor, whatever their alignment.
RowCache row_cache_of(const Tensor& t, int row_cache_bytes);

// Cuts the plan into items.
LaunchLayout launch_layout_of(Plan& plan, const Limits& limits, int shared_storage_bytes);

}  // namespace onepass::cuda
