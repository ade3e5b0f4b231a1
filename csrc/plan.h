// Static description of the tensors to update and how they are split into work items. Independent of framework and
// device.
//
// A tensor is `rows` x `length` in the order of dim 0 (its channels), or one row where rule and storage look at
// elements only. It may be a part of a larger one, its shard: some of the rows, or a part of each. Work items do not
// depend on the number of threads or blocks, so that the results do not either. An item is a run of whole rows, or a
// piece of one row: of one that is too long for the row cache, or of a tensor that is one row.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "rules/blocks.h"
#include "rules/hyper.h"

namespace onepass {

// u8: of moments alone, codes of 8 bits (rules/blocks.h).
enum class Dtype : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3, u8 = 4 };
inline int64_t bytes_of(Dtype t) {
  return t == Dtype::f64 ? 8 : t == Dtype::f32 ? 4 : t == Dtype::u8 ? 1 : 2;
}
inline int64_t work_bytes_of(Dtype t) {
  return t == Dtype::f64 ? 8 : 4;
}

constexpr int max_moments = 2;

// How the weight of a parameter is kept. master: it has a remainder, and is a float32 weight with it. stochastic: it
// is rounded stochastically.
enum class Weight : uint8_t { plain, master, stochastic };

// How a tensor and its moments are stored. Kernels are compiled for these combinations; the arithmetic's dtype follows
// from that of the parameter (rules/number.h).
struct Storage {
  Dtype param = Dtype::f32, moment = Dtype::f32;
  Weight weight = Weight::plain;

  constexpr bool operator==(const Storage&) const = default;
  constexpr bool master() const { return weight == Weight::master; }
  constexpr bool stochastic() const { return weight == Weight::stochastic; }
  // Moments of 8 bits, whose blocks restart at each row.
  constexpr bool blocks() const { return moment == Dtype::u8; }
  // With moments in the dtype of the arithmetic.
  constexpr Storage with_wide_moments() const { return {param, param == Dtype::f64 ? Dtype::f64 : Dtype::f32, weight}; }
};
constexpr Storage storages[] = {{Dtype::f32, Dtype::f32},
                                {Dtype::f64, Dtype::f64},
                                {Dtype::bf16, Dtype::f32},
                                {Dtype::f16, Dtype::f32},
                                {Dtype::bf16, Dtype::f32, Weight::master},
                                {Dtype::bf16, Dtype::f32, Weight::stochastic},
                                {Dtype::f32, Dtype::bf16},
                                {Dtype::bf16, Dtype::bf16},
                                {Dtype::bf16, Dtype::bf16, Weight::master},
                                {Dtype::bf16, Dtype::bf16, Weight::stochastic},
                                {Dtype::f32, Dtype::u8},
                                {Dtype::bf16, Dtype::u8},
                                {Dtype::bf16, Dtype::u8, Weight::master},
                                {Dtype::bf16, Dtype::u8, Weight::stochastic}};
constexpr int storage_count = sizeof(storages) / sizeof(Storage);

// Its place in `storages`, or -1.
constexpr int index_of(const Storage& storage) {
  for (int i = 0; i < storage_count; ++i)
    if (storages[i] == storage) return i;
  return -1;
}

// The dtype of the moments of a parameter with rows of so many elements, as Precision.moment_dtype of precision.py.
inline Dtype moment_dtype(Dtype param, const Precision& precision, int64_t elements, int64_t row) {
  const Dtype wide = Storage{param}.with_wide_moments().moment;
  if (precision.moment_bits == 32 || (param != Dtype::bf16 && param != Dtype::f32)) return wide;
  if (precision.moment_bits == 16) return Dtype::bf16;
  if (elements < (row == elements ? smallest_vector_of_blocks : smallest_tensor_of_blocks)) return wide;
  return row < shortest_row_of_blocks ? Dtype::bf16 : Dtype::u8;
}

// The storage of a parameter in a group.
inline Storage storage_of(Dtype param, const Precision& precision, int64_t elements, int64_t row) {
  const bool rounds = param == Dtype::bf16;
  return {param, moment_dtype(param, precision, elements, row),
          rounds && precision.master_weights        ? Weight::master
          : rounds && precision.stochastic_rounding ? Weight::stochastic
                                                    : Weight::plain};
}

// Which kernels step a tensor.
struct KernelKey {
  Storage storage;
  RuleId rule = RuleId::adam;

  // Among all combinations of storage and rule.
  int index() const { return index_of(storage) * rule_count + static_cast<int>(rule); }
};

// A dense or strided tensor in memory; strides in elements.
struct View {
  void* data = nullptr;
  std::vector<int64_t> strides;
};

// Where an element of a tensor is in the whole that it is a part of, in the order of the shape.
struct WholePlace {
  int64_t first;          // of the first element
  uint64_t rows_of_2_64;  // 2^64 over the length of a row here, or 0 where that is 1
  int64_t missing;        // elements of a row that are elsewhere

  // Division by multiplication is exact here, as the elements of a tensor times those of a row are fewer than 2^64; and
  // a division takes registers that `update` does not have.
  ONEPASS_HD int64_t of(int64_t index) const {
    int64_t at = first + index;
    if (missing) at += (rows_of_2_64 ? int64_t(upper_half(uint64_t(index), rows_of_2_64)) : index) * missing;
    return at;
  }

 private:
  ONEPASS_HD static uint64_t upper_half(uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH__
    return __umul64hi(a, b);
#else
    return uint64_t((static_cast<unsigned __int128>(a) * b) >> 64);
#endif
  }
};

// One parameter with its gradient and moments. Only the addresses change from step to step.
struct Tensor {
  Storage storage;
  int group = 0;
  uint32_t number = 0;  // among all parameters of the optimizer: of its random bits
  std::vector<int64_t> shape;
  int64_t rows = 1, length = 0;  // rows of its own where projected, and where moments have blocks
  int64_t whole_length = 0;      // of a row of the whole tensor
  int64_t first = 0;             // the place of the first element in the whole tensor, in the order of its shape
  bool split = false;            // the rows are parts of those of the whole tensor
  bool projected = false;
  bool packed = true;  // all operands are laid out alike, with every row contiguous and rows in order

  View p, g, moment[max_moments], remainder;
  uint8_t* scale[max_moments] = {};  // of moments with blocks, contiguous: those of every row
  float* step = nullptr;             // null where there is no count, and where the state is missing
  uint8_t* gate_counter = nullptr;   // null where not projected
  bool active = false;               // has a gradient at this step
  bool negated = false;              // the gradient is the negative of what is in memory
  bool wide_gradient = false;        // float32, of a parameter of 16 bits
  bool first_step = false;           // its moments were made for this step

  int64_t first_item = 0, items = 0;
  int64_t first_coefficient = 0;  // of its rows, among those of all projected tensors
  int64_t first_split_row = 0;    // likewise among those of all projected tensors whose rows are split

  int64_t elements() const { return rows * length; }
  WholePlace whole_place() const {
    return {first, length > 1 ? ~uint64_t(0) / uint64_t(length) + 1 : 0, whole_length - length};
  }
  int64_t gradient_bytes() const { return wide_gradient ? 4 : bytes_of(storage.param); }
};

struct WorkItem {
  int tensor;
  int64_t row, rows;
  int64_t begin, end;  // elements of the row, [0, length) but for a piece

  int64_t elements() const { return rows * (end - begin); }
  bool whole_rows(const Tensor& t) const { return end - begin == t.length && !t.split; }
};

struct Plan {
  RuleId rule = RuleId::adam;              // of the optimizer class
  bool lazy_buffer = false;                // torch.optim.SGD's, see spec.py
  std::vector<Hyper> hypers;               // of each group
  std::vector<DeviceHyper> device_hypers;  // likewise
  std::vector<Tensor> tensors;
  std::vector<WorkItem> items;
  int64_t coefficients = 0;  // rows of the tensors that were cut and are projected
  int64_t split_rows = 0;    // likewise, where the rows are split
  // Whether the statistics of the tensors are exchanged with other plans between the update and the decision, as they
  // step other rows of the same tensors. No gate is known before the update then: p is not written where none can be
  // predicted.
  bool exchanges = false;

  RuleId rule_id(int group) const { return lazy_buffer && hypers[group].momentum == 0 ? RuleId::sgd : rule; }

  KernelKey key(const Tensor& t) const {
    const RuleId rule = rule_id(t.group);
    return {moments_of(rule) ? t.storage : t.storage.with_wide_moments(), rule};
  }

  // Whether a step of the tensor may take random bits.
  bool draws(const Tensor& t) const {
    return t.storage.stochastic() || (t.storage != t.storage.with_wide_moments() && moments_of(rule) == 2);
  }

  // Whether a gate is predicted. A fixed gate is predicted rightly. Otherwise the correction recovers p from p', which
  // needs more digits than 16 bits have; and it cannot undo the projection of a buffer.
  bool predicts(const Tensor& t) const {
    const Hyper& h = hypers[t.group];
    if (h.fixed_gate != no_fixed_gate) return t.projected;
    return t.projected && h.speculate && !(h.project_momentum && !h.nesterov) &&
           (bytes_of(t.storage.param) >= 4 || t.storage.master());
  }

  // Whether a tensor is updated before its gate is decided: under the predicted gate, or without a write of p.
  bool speculates(const Tensor& t) const { return exchanges ? t.projected : predicts(t); }

  // Cuts one tensor into items of about `item_elements`. A row longer than `longest_row` is cut into pieces, and one
  // that is a part itself is a piece.
  void cut(int tensor, int64_t item_elements, int64_t longest_row);
};

}  // namespace onepass
