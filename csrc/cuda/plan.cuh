// The plan in device memory, as plain structs, and the parameters of a launch.
#pragma once

#include <cstddef>

#include "../plan.h"
#include "../rules/row.h"

namespace onepass::cuda {

constexpr int warp_size = 32;
constexpr int block_size = 128;
constexpr int warps = block_size / warp_size;

// What a lane keeps of a row from its sums to its write.
enum class RowCache : uint8_t {
  none,  // the row does not fit: its write is deferred
  u,     // the direction; p is read again, mostly from the second-level cache
  p_and_u,
};

// Vectors that a thread can keep in a row cache of so many bytes.
ONEPASS_HD int cached_vectors(RowCache cache, int row_cache_bytes, int vector_bytes) {
  return row_cache_bytes / ((cache == RowCache::u ? 1 : 2) * vector_bytes * block_size);
}

// The lanes that share a row of so many vectors: as few as hold it in `most` vectors each, since the end of a row costs
// a warp as much as the ends of several; but enough for neighbouring lanes to fill a line of memory, and for all lanes
// of the group to have one of its rows. The whole group, if a warp is too little.
ONEPASS_HD int subgroup_width(int vectors, int64_t rows, int most, int group_size) {
  constexpr int line = 8;
  if (vectors > most * warp_size) return group_size;
  int width = 1;
  while (width < warp_size && width < vectors && (width < line || vectors > most * width || rows * width < group_size))
    width *= 2;
  return width;
}

// The same where moments have blocks, each of so many vectors of every lane of a warp: a warp, or the whole group.
ONEPASS_HD int width_of_blocks(int vectors, int most, int vectors_of_block, int group_size) {
  return vectors > most / vectors_of_block * vectors_of_block * warp_size ? group_size : warp_size;
}

// A work item as the device reads it, in one access. rows: -length for a piece of a row. at: the first row, or for a
// piece its first element in the tensor.
struct alignas(16) DeviceItem {
  int tensor, rows;
  int64_t at;
};

// The items of a tensor that the correction has to visit.
struct Correction {
  int first_item, items;
};

// The device's description of a tensor. Uploaded when it changes.
struct DeviceTensor {
  void* p;
  void* moment[max_moments];
  uint8_t* scale[max_moments];  // of moments with blocks, else null
  void* remainder;              // of p, or null
  float* step;                  // null where there is no count, or the host counts
  uint8_t* gate_counter;        // null where not projected
  const int64_t* layout;        // null if packed, else sizes, then the strides of p, g, the moments and the remainder
  int64_t rows, length, whole_length;
  WholePlace whole_place;
  int64_t first_coefficient;
  int64_t first_split_row;  // of its sums in DevicePlan::row_sums
  int first_item, items;
  uint32_t number;  // of its random bits
  uint8_t dims;
  uint8_t key;        // KernelKey::index of the kernels that step it
  int scalars_index;  // its scalars, in KernelParams::scalars or DevicePlan::scalars
  int hyper_index;    // its group in DevicePlan::hypers, or -1: the scalars come from the host
  RowCache row_cache;
  bool projected, speculates;
  bool split;     // the rows are parts of rows, whose sums are completed by others
  bool deferred;  // p is written by the correction alone
  bool negated;
  bool wide_gradient;  // float32, of a parameter of 16 bits
  bool first_step;     // the momentum buffer is new; the device clears first_steps once it has stepped
};

// An affine step in the arithmetic of the elements.
template <class S>
struct NarrowAffine {
  S d, k;
};

// The scalars of a step, for tensors that share their group and step count.
template <class Rule>
struct KernelScalars {
  Rule rule;
  NarrowAffine<typename Rule::Number> step;  // `unprojected`, narrowed: the kernel `step` converts nothing
  Projection projection;
  Affine unprojected;
  bool project_momentum;
  DrawKey draw_key;
};

template <class Rule>
ONEPASS_HD KernelScalars<Rule> kernel_scalars(const Scalars& s) {
  typedef typename Rule::Number S;
  const Affine unprojected = s.projection.affine(Gate::none, 0);
  return {rule_of<Rule>(s), {S(unprojected.d), S(unprojected.k)}, s.projection, unprojected, s.project_momentum,
          s.draw_key};
}

// python/onepass/backend/cuda.py reads these fields by offset.
static_assert(sizeof(Verdict) == 64 && sizeof(Gate) == 4);
static_assert(offsetof(Verdict, gate) == 0 && offsetof(Verdict, corrected) == 2 * sizeof(int32_t));
static_assert(offsetof(Verdict, scaled_cosine) == 2 * sizeof(double));
static_assert(offsetof(Verdict, sums) + offsetof(RowSums, pp) == 5 * sizeof(double));
static_assert(offsetof(Verdict, sums) + offsetof(RowSums, gg) == 6 * sizeof(double));

// Parameters common to all kernels of a step.
struct DevicePlan {
  const DeviceItem* items;  // first those that a block takes, then those that a warp takes
  int block_items, all_items;
  const DeviceTensor* tensors;
  int all_tensors;
  const void* const* gradients;  // null where they are kernel parameters
  unsigned char* scalars;        // likewise; scalars_bytes apart
  const DeviceHyper* hypers;
  RowStats* row_stats;   // of every item
  double* coefficients;  // c of every row of the projected tensors
  Verdict* verdicts;
  TensorStats* stats;       // of every tensor; null where they are not exchanged
  RowSums* row_sums;        // of every split row
  unsigned* arrivals;       // of every tensor: how many of its items are done
  Correction* corrections;  // tensors of this kernel key that are to be corrected, in any order
  unsigned* corrected;      // their number, and how many blocks are done with them: back to 0 after every step
  bool* first_steps;        // of every tensor: no step on the device was taken yet
  double* square_sums;      // of the gradient of every tensor
  Scaling scaling;
  int key;
  int row_cache_bytes;  // shared memory of a block for its row cache
  bool lazy_buffer;
};

// A launch's gradients and scalars come by value, so that nothing need be copied to the device before it; a plan that
// has more of them keeps them in device memory. A gradient is null where its tensor is not to be stepped.
constexpr int max_gradients = 1024;
constexpr int max_scalars = 8;
constexpr int scalars_bytes = 256;

template <class Rule>
struct KernelParams {
  DevicePlan plan;
  KernelScalars<Rule> scalars[max_scalars];
  const void* gradient[max_gradients];
};

// Words to be written to device memory: changes of the plan.
struct Chunk {
  static constexpr int max_words = 4000;
  uint64_t* to;
  int count;
  uint64_t word[max_words];
};

}  // namespace onepass::cuda
