#include "plan.h"

#include <algorithm>

namespace onepass {

void Plan::cut(int tensor, int64_t item_elements, int64_t longest_row) {
  Tensor& t = tensors[tensor];
  t.first_item = static_cast<int64_t>(items.size());
  t.items = 0;
  t.first_coefficient = coefficients;
  if (t.projected) coefficients += t.rows;
  t.first_split_row = split_rows;
  if (t.projected && t.split) split_rows += t.rows;
  if (t.elements() == 0) return;

  const int64_t rows_per_item = t.split ? 1 : std::max<int64_t>(1, item_elements / t.length);
  const int64_t piece = t.length <= longest_row ? t.length : item_elements;
  for (int64_t row = 0; row < t.rows; row += rows_per_item)
    for (int64_t begin = 0; begin < t.length; begin += piece)
      items.push_back({tensor, row, std::min(rows_per_item, t.rows - row), begin, std::min(begin + piece, t.length)});
  t.items = static_cast<int64_t>(items.size()) - t.first_item;
}

}  // namespace onepass
