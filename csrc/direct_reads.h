// Reads of a tensor's description past DLPack's exchange table, which takes ten times as long.
//
// A Python object of torch.Tensor holds an at::Tensor, and a pointer to one is what the functions of torch's stable C
// interface take. Read anew at every step, it shows all that may have happened to the tensor. Where in the object it
// is, and that the functions say what torch says, is proven in backend/direct_reads.py.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "dlpack.h"

namespace onepass {

class DirectReads {
 public:
  // As found by backend/direct_reads.py; empty if there are none.
  explicit DirectReads(const pybind11::dict& found) {
    if (found.empty()) return;
    type_ = reinterpret_cast<PyTypeObject*>(pybind11::module_::import("torch").attr("Tensor").ptr());
    offset_ = found["offset"].cast<Py_ssize_t>();
    const auto take = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(found[name].cast<uintptr_t>());
    };
    take("data_ptr", data_ptr_);
    take("dim", dim_);
    take("sizes", sizes_);
    take("strides", strides_);
    take("dtype", dtype_);
    take("device_type", device_type_);
    take("device_index", device_index_);
    take("is_neg", is_neg_);
    const auto is = [&](const char* name, dlpack::DataType type) {
      const auto number = found[name].cast<size_t>();
      if (number < dtypes_.size()) dtypes_[number] = type;
    };
    is("float16", dlpack::float16);
    is("float32", dlpack::float32);
    is("float64", dlpack::float64);
    is("bfloat16", dlpack::bfloat16);
    is("uint8", dlpack::uint8);
    is("int16", dlpack::int16);
  }

  bool can_read(PyObject* object) const { return type_ && PyObject_TypeCheck(object, type_); }

  // Describes a tensor; false if only the exchange table can, or can say that it is none.
  bool describe(PyObject* object, dlpack::Tensor& out) const {
    if (!can_read(object)) return false;
    const void* tensor = in(object);
    int64_t dims;
    int32_t dtype, device, index = 0;
    if (data_ptr_(tensor, &out.data) || dim_(tensor, &dims) || sizes_(tensor, &out.shape) ||
        strides_(tensor, &out.strides) || dtype_(tensor, &dtype) || device_type_(tensor, &device))
      return false;
    if (static_cast<size_t>(dtype) >= dtypes_.size() || !dtypes_[dtype].lanes) return false;
    if (device != torch_cpu && (device != torch_cuda || device_index_(tensor, &index))) return false;
    out.device = {device == torch_cpu ? dlpack::cpu : dlpack::cuda, index};
    out.ndim = static_cast<int32_t>(dims);
    out.dtype = dtypes_[dtype];
    out.byte_offset = 0;
    return true;
  }

  // Brings what `describe` reads of a tensor, or of null or anything else, into the caches.
  void prefetch(PyObject* object) const {
    if (!object || !can_read(object)) return;
    const char* at = *static_cast<const char* const*>(in(object));
    for (int line = 0; line < 3; ++line) __builtin_prefetch(at + 64 * line);
  }

  // Whether a tensor is the negative of what is in its memory. Only of one that can be read.
  bool is_neg(PyObject* object) const { return is_neg_(in(object)); }

 private:
  static constexpr int32_t torch_cpu = 0, torch_cuda = 1;

  template <class T>
  using Getter = int32_t (*)(const void* tensor, T* out);  // 0, or that it failed

  const void* in(PyObject* object) const { return reinterpret_cast<const char*>(object) + offset_; }

  PyTypeObject* type_ = nullptr;
  Py_ssize_t offset_ = 0;
  Getter<void*> data_ptr_;
  Getter<int64_t> dim_;
  Getter<int64_t*> sizes_, strides_;
  Getter<int32_t> dtype_, device_type_, device_index_;
  bool (*is_neg_)(const void* tensor);
  std::array<dlpack::DataType, 32> dtypes_{};  // by torch's number; of lanes 0 where there is none
};

}  // namespace onepass
