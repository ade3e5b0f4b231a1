// The conversions of CUDA's cuda_fp16.h that the kernels use. Not every compiler has _Float16.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits;
};

inline __half __ushort_as_half(uint16_t bits) {
  return {bits};
}
inline uint16_t __half_as_ushort(__half x) {
  return x.bits;
}

inline float __half2float(__half x) {
  const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
  float size = std::scalbn(float(mantissa + (exponent ? 1024 : 0)), std::max(exponent, 1) - 25);
  if (exponent == 31) size = mantissa ? std::nanf("") : INFINITY;
  return std::copysign(size, x.bits >> 15 ? -1.0f : 1.0f);
}

inline __half __float2half_rn(float x) {
  const float size = std::fabs(x);
  const int sign = std::signbit(x) ? 0x8000 : 0;
  if (!(size < 65520)) return {uint16_t(sign | (size == size ? 0x7c00 : 0x7e00))};  // what rounds to infinity, NaN
  // In units of the last place. Rounded up to a power of two, they carry into the exponent.
  const int exponent = std::max(std::ilogb(size), -14);
  const int units = int(std::nearbyint(std::scalbn(size, 10 - exponent)));
  return {uint16_t(sign + ((exponent + 14) << 10) + units)};
}
