#include "plan.h"

#include <algorithm>

namespace onepass {

void Plan::cut() {
  items.clear();
  int64_t coefficient_count = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& t = tensors[i];
    t.first_item = static_cast<int64_t>(items.size());
    t.first_coefficient = coefficient_count;
    if (t.projected) coefficient_count += t.rows;
    if (t.rows == 0 || t.length == 0) continue;

    int64_t rows_per_item = std::max<int64_t>(1, item_elements / t.length);
    for (int64_t row = 0; row < t.rows; row += rows_per_item)
      for (int64_t begin = 0; begin < t.length; begin += item_elements)
        items.push_back({static_cast<int>(i), row, std::min(rows_per_item, t.rows - row), begin,
                         std::min(begin + item_elements, t.length)});
    t.items = static_cast<int64_t>(items.size()) - t.first_item;
  }
  coefficients.assign(coefficient_count, 0.0);
}

}  // namespace onepass
