// Dtype, shape and strides of a tensor that DLPack describes, in the plan's terms.
#pragma once

#include <algorithm>
#include <vector>

#include "dlpack.h"
#include "plan.h"

namespace onepass {

inline bool dtype_of(const dlpack::DataType& type, Dtype& out) {
  if (type == dlpack::bfloat16) return out = Dtype::bf16, true;
  if (type == dlpack::float16) return out = Dtype::f16, true;
  if (type == dlpack::float32) return out = Dtype::f32, true;
  if (type == dlpack::float64) return out = Dtype::f64, true;
  return false;
}

inline dlpack::DataType type_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bf16:
      return dlpack::bfloat16;
    case Dtype::f16:
      return dlpack::float16;
    case Dtype::f32:
      return dlpack::float32;
    case Dtype::u8:
      return dlpack::uint8;
    default:
      return dlpack::float64;
  }
}

// The strides of a dimension of one element mean nothing, and frameworks differ in them.
inline std::vector<int64_t> strides_of(const dlpack::Tensor& x) {
  std::vector<int64_t> strides(x.strides, x.strides + x.ndim);
  for (int d = 0; d < x.ndim; ++d)
    if (x.shape[d] == 1) strides[d] = 0;
  return strides;
}

inline bool same_strides(const dlpack::Tensor& x, const std::vector<int64_t>& strides) {
  for (int d = 0; d < x.ndim; ++d)
    if (x.shape[d] != 1 && x.strides[d] != strides[d]) return false;
  return true;
}

inline bool same_shape(const dlpack::Tensor& x, const std::vector<int64_t>& shape) {
  return x.ndim == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), x.shape);
}

inline bool same_description(const dlpack::Tensor& x, const dlpack::Tensor& y) {
  return x.device.type == y.device.type && x.device.id == y.device.id && x.dtype == y.dtype &&
         same_shape(x, {y.shape, y.shape + y.ndim}) && same_strides(x, {y.strides, y.strides + y.ndim}) &&
         static_cast<char*>(x.data) + x.byte_offset == static_cast<char*>(y.data) + y.byte_offset;
}

}  // namespace onepass
