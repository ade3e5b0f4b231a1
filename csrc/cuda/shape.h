// How a plan is laid onto a device: which rows stay on chip, what is cut how, which crew takes it. A pure function of
// the plan's tensors and the device's limits.
#pragma once

#include "plan.cuh"

namespace onepass::cuda {

struct Limits {
  int multiprocessors;
  int shared_per_multiprocessor, shared_per_block, reserved_per_block;
};

struct Shape {
  int room_bytes;   // shared memory of a block for rows
  int block_items;  // items of the tensors that blocks take; those that warps take follow
};

// Elements of a row that stay on chip in so much room; any layout, any alignment.
int64_t longest_row(const Tensor& t, int room_bytes);

// Cuts the plan into items.
Shape shape_of(Plan& plan, const Limits& limits, int board_bytes);

}  // namespace onepass::cuda
