// The plan: what is known of a set of tensors before any step. It knows no framework and no device.
//
// A tensor is `rows` x `length` in the order of dim 0 (its channels), or one row where the rule looks at elements
// only. Work is cut into items that do not depend on how many threads or blocks there are, so that neither do the
// results: an item is a run of whole rows, or a piece of one row too long to be held on chip.
#pragma once

#include <cstdint>
#include <vector>

#include "rules/hyper.h"

namespace onepass {

enum class Dtype : int { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };
inline int64_t bytes_of(Dtype t) {
  return t == Dtype::f64 ? 8 : t == Dtype::f32 ? 4 : 2;
}
inline int64_t work_bytes_of(Dtype t) {
  return t == Dtype::f64 ? 8 : 4;
}

constexpr int max_moments = 2;

// A dense or strided tensor in memory; strides in elements.
struct View {
  void* data = nullptr;
  std::vector<int64_t> strides;
};

// One parameter with its gradient and moments. The addresses change from step to step, the rest does not.
struct Tensor {
  Dtype dtype = Dtype::f32;
  int group = 0;
  std::vector<int64_t> shape;
  int64_t rows = 1, length = 0;
  bool projected = false;
  bool packed = true;  // all operands are laid out alike, with every row contiguous and rows in order

  View p, g, moment[max_moments];
  float* step = nullptr;            // null for rules without a count
  uint8_t* gate_counter = nullptr;  // null where not projected
  bool active = false;              // has a gradient at this step
  bool negated = false;             // the gradient is the negative of what lies in memory
  bool first = false;               // its moments were made for this step

  int64_t first_item = 0, items = 0;
  int64_t first_coefficient = 0;  // of its rows, among those of all projected tensors

  int64_t elements() const { return rows * length; }
};

struct Item {
  int tensor;
  int64_t row, rows;
  int64_t begin, end;  // elements of the row, [0, length) but for a piece

  int64_t elements() const { return rows * (end - begin); }
  bool whole_rows(const Tensor& t) const { return end - begin == t.length; }
};

struct Plan {
  bool sgd = false;
  bool lazy_buffer = false;     // torch.optim.SGD's, see hyper.py
  std::vector<Hyper> hypers;    // of each group
  std::vector<LiveHyper> live;  // likewise
  std::vector<Tensor> tensors;
  std::vector<Item> items;
  int64_t coefficients = 0;  // rows of the tensors that were cut and are projected

  Family family(int group) const {
    if (!sgd) return Family::adam;
    return lazy_buffer && hypers[group].momentum == 0 ? Family::plain_sgd : Family::sgd;
  }

  // Settling takes p back out of p', which a 16-bit p has not the digits for; a projected buffer it cannot undo.
  bool speculates(const Tensor& t) const {
    const Hyper& h = hypers[t.group];
    return t.projected && h.speculate && !(h.project_momentum && !h.nesterov) && bytes_of(t.dtype) >= 4;
  }

  // Cuts one tensor into items of about `item_elements`. A row longer than `longest_row` is cut into pieces.
  void cut(int tensor, int64_t item_elements, int64_t longest_row);
};

}  // namespace onepass
