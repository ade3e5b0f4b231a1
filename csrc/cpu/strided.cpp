#include "strided.h"

#include <cstring>
#include <stdexcept>

namespace onepass {

namespace {

// Calls visit(offset) for every element of the item in row-major order; offsets in elements of the view.
template <class Visit>
void each_offset(const Tensor& t, const View& view, const WorkItem& item, const Visit& visit) {
  const int dims = static_cast<int>(t.shape.size());
  std::vector<int64_t> index(dims);
  for (int64_t row = item.row; row < item.row + item.rows; ++row) {
    int64_t rest = row * t.length + item.begin, offset = 0;
    for (int d = dims - 1; d >= 0; --d) {
      index[d] = rest % t.shape[d];
      rest /= t.shape[d];
      offset += index[d] * view.strides[d];
    }
    for (int64_t i = item.begin; i < item.end; ++i) {
      visit(offset);
      for (int d = dims - 1; d >= 0; --d) {  // the next index, like an odometer
        offset += view.strides[d];
        if (++index[d] < t.shape[d]) break;
        offset -= index[d] * view.strides[d];
        index[d] = 0;
      }
    }
  }
}

template <class T>
void gather_as(const Tensor& t, const View& from, const WorkItem& item, void* to) {
  const T* source = static_cast<const T*>(from.data);
  T* out = static_cast<T*>(to);
  each_offset(t, from, item, [&](int64_t offset) { *out++ = source[offset]; });
}

template <class T>
void scatter_as(const Tensor& t, const View& to, const WorkItem& item, const void* from) {
  T* target = static_cast<T*>(to.data);
  const T* in = static_cast<const T*>(from);
  each_offset(t, to, item, [&](int64_t offset) { target[offset] = *in++; });
}

}  // namespace

void gather(const Tensor& t, const View& from, int64_t element_bytes, const WorkItem& item, void* to) {
  if (element_bytes == 1)
    gather_as<uint8_t>(t, from, item, to);
  else if (element_bytes == 2)
    gather_as<uint16_t>(t, from, item, to);
  else if (element_bytes == 4)
    gather_as<uint32_t>(t, from, item, to);
  else
    gather_as<uint64_t>(t, from, item, to);
}

void scatter(const Tensor& t, const View& to, int64_t element_bytes, const WorkItem& item, const void* from) {
  if (element_bytes == 1)
    scatter_as<uint8_t>(t, to, item, from);
  else if (element_bytes == 2)
    scatter_as<uint16_t>(t, to, item, from);
  else if (element_bytes == 4)
    scatter_as<uint32_t>(t, to, item, from);
  else
    scatter_as<uint64_t>(t, to, item, from);
}

}  // namespace onepass
