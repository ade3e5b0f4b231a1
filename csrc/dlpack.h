// The part of DLPack 1.x's C ABI that tensors cross through: what a tensor is, and the table of functions that a
// framework hangs on its tensor type as the capsule `__dlpack_c_exchange_api__`. Layouts and values are the standard's
// (https://dmlc.github.io/dlpack); only what is used here has a full declaration.
#pragma once

#include <cstdint>

namespace onepass::dlpack {

enum DeviceType : int32_t { cpu = 1, cuda = 2 };
enum TypeCode : uint8_t { integer = 0, unsigned_integer = 1, floating = 2, bfloat = 4 };

struct Device {
  int32_t type;
  int32_t id;
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;

  bool operator==(const DataType&) const = default;
};

constexpr DataType float16{floating, 16, 1}, float32{floating, 32, 1}, float64{floating, 64, 1};
constexpr DataType bfloat16{bfloat, 16, 1}, uint8{unsigned_integer, 8, 1}, int16{integer, 16, 1};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

struct Version {
  uint32_t major, minor;
};

struct ExchangeHeader {
  Version version;
  ExchangeHeader* previous;
};

struct ExchangeApi {
  ExchangeHeader header;
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  // Describes a tensor object without owning it; -1 with a Python error set if it cannot be described.
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

constexpr const char* capsule_name = "dlpack_exchange_api";
constexpr uint32_t supported_major = 1;

}  // namespace onepass::dlpack
