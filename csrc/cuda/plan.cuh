// What the kernels know of a plan: plain structs in device memory, and the arguments of a launch.
#pragma once

#include <cstddef>

#include "../plan.h"
#include "../rules/verdict.h"

namespace onepass::cuda {

constexpr int warp_size = 32;
constexpr int block_size = 128;
constexpr int warps = block_size / warp_size;

// A tensor as the kernels see it. Uploaded when any of it changes.
struct DeviceTensor {
  void* p;
  void* moment[max_moments];
  float* step;            // null where there is no count, or the host counts
  uint8_t* gate_counter;  // null where not projected
  const int64_t* layout;  // null if packed, else sizes, then the strides of p, g and the moments
  int64_t rows, length;
  int64_t first_item, first_coefficient;
  int items;
  int dims;
  int kind;    // of the kernels that step it: dtype and family
  int course;  // its scalars, in Arguments::course or Frame::courses
  int live;    // its group in Frame::live, or -1: the scalars come from the host
  bool projected, speculates, rows_fit;
  bool negated, first;  // first: of its group's steps on the device, as far as the host knows; see Frame::fresh
};

inline int kind_of(Dtype dtype, Family family) {
  return static_cast<int>(dtype) * 3 + static_cast<int>(family);
}

// The scalars of a step, for tensors that share their group and step count.
template <class Rule>
struct Course {
  Rule rule;
  Projection projection;
  Affine through;
  bool project_momentum;
};

template <class Rule>
ONEPASS_HD Course<Rule> course_of(const Scalars& s) {
  return {rule_of<Rule>(s), s.projection, s.projection.affine(Gate::none, 0), s.project_momentum};
}

// A verdict with what settling needs to know. No padding: the compiler would copy it by way of the stack.
struct DeviceVerdict {
  Gate gate;
  Write write;
  int settled, settle;  // the prediction was wrong; that, or some row was left alone
  double scaled_cosine, layer_coefficient;
  RowSums sums;
};

// python/onepass/cuda.py reads them where they lie.
static_assert(sizeof(DeviceVerdict) == 64 && sizeof(Gate) == 4);
static_assert(offsetof(DeviceVerdict, gate) == 0 && offsetof(DeviceVerdict, settled) == 2 * sizeof(int32_t));
static_assert(offsetof(DeviceVerdict, scaled_cosine) == 2 * sizeof(double));
static_assert(offsetof(DeviceVerdict, sums) + offsetof(RowSums, pp) == 5 * sizeof(double));
static_assert(offsetof(DeviceVerdict, sums) + offsetof(RowSums, gg) == 6 * sizeof(double));

// What every launch is told of the plan.
struct Frame {
  const Item* items;  // first those that a block takes, then those that a warp takes
  int block_items, all_items;
  const DeviceTensor* tensors;
  int all_tensors;
  const void* const* gradients;  // null where they come with the arguments
  unsigned char* courses;        // likewise; course_bytes apart
  const LiveHyper* live;
  Report* reports;       // of every item
  double* coefficients;  // c of every row of the projected tensors
  DeviceVerdict* verdicts;
  unsigned* tickets;    // of every tensor: its items that are done
  bool* fresh;          // of every tensor: no step on the device was taken yet
  double* square_sums;  // of the gradient of every tensor
  Scaling scaling;
  int kind;
  int room_bytes;  // shared memory for rows
  bool sgd, lazy_buffer;
};

// A launch's gradients and scalars come by value, so that nothing need be copied to the device before it; a plan that
// has more of them keeps them in device memory. A gradient is null where its tensor is not to be stepped.
constexpr int max_gradients = 1024;
constexpr int max_courses = 8;
constexpr int course_bytes = 256;

template <class Rule>
struct Arguments {
  Frame frame;
  Course<Rule> course[max_courses];
  const void* gradient[max_gradients];
};

// Words to be written to device memory, for what changes in the plan.
struct Parcel {
  static constexpr int max_words = 4000;
  uint64_t* to;
  int count;
  uint64_t word[max_words];
};

}  // namespace onepass::cuda
