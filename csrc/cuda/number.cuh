// Parameters as they are stored, to and from the numbers they are worked on as.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "../rules/number.h"

namespace onepass::cuda {

__device__ __forceinline__ uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
__device__ __forceinline__ float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

__device__ __forceinline__ float to_work(float x) {
  return x;
}
__device__ __forceinline__ double to_work(double x) {
  return x;
}
__device__ __forceinline__ float to_work(BFloat16 x) {
  return float_of(uint32_t(x.bits) << 16);
}
__device__ __forceinline__ float to_work(Half x) {
  return __half2float(__ushort_as_half(x.bits));
}

// The parts of a Master, each in the bits of a float: those of the parameter, and a signed integer, to be added to
// them.
struct MasterParameter {
  uint16_t bits;
};
struct MasterRemainder {
  uint16_t bits;
};
__device__ __forceinline__ float to_work(MasterParameter x) {
  return float_of(uint32_t(x.bits) << 16);
}
__device__ __forceinline__ float to_work(MasterRemainder x) {
  return float_of(uint32_t(int32_t(int16_t(x.bits))));
}
__device__ __forceinline__ float to_work(ShortMoment x) {
  return to_work(BFloat16{x.bits});
}
// A code in the bits of a float.
__device__ __forceinline__ float to_work(ByteMoment x) {
  return float_of(uint32_t(x));
}
// The float32 weight; the parameter alone if only the remainder makes a NaN of it.
__device__ __forceinline__ float joined(float parameter, float remainder) {
  const float x = float_of(bits_of(parameter) + bits_of(remainder));
  return x == x ? x : parameter;
}

template <class T>
__device__ __forceinline__ T from_work(float x) {
  return x;
}
template <class T>
__device__ __forceinline__ T from_work(double x) {
  return x;
}
// Round to nearest even; a NaN stays one.
template <>
__device__ __forceinline__ BFloat16 from_work<BFloat16>(float x) {
  const uint32_t bits = bits_of(x), rounded = bits + (((bits >> 16) & 1) + 0x7fff);
  return {uint16_t((x == x ? rounded : (bits | 0x400000)) >> 16)};
}
// Numbers of bfloat16: x with `up` added to its bits, without those below. A NaN is a quiet one, since it was computed.
__device__ __forceinline__ float rounded_up(float x, uint32_t up) {
  return float_of((bits_of(x) + (x == x ? up : 0)) & 0xffff0000);
}
__device__ __forceinline__ float rounded_to_nearest(float x) {
  return rounded_up(x, ((bits_of(x) >> 16) & 1) + 0x7fff);
}
// A moment is in bfloat16 already when it is stored.
template <>
__device__ __forceinline__ ShortMoment from_work<ShortMoment>(float x) {
  return {uint16_t(bits_of(x) >> 16)};
}
template <>
__device__ __forceinline__ ByteMoment from_work<ByteMoment>(float x) {
  return ByteMoment(bits_of(x));
}
// Round to nearest, ties away from zero; a NaN stays one.
template <>
__device__ __forceinline__ MasterParameter from_work<MasterParameter>(float x) {
  const uint32_t bits = bits_of(x);
  return {uint16_t((x == x ? bits + 0x8000 : (bits | 0x400000)) >> 16)};
}
template <>
__device__ __forceinline__ MasterRemainder from_work<MasterRemainder>(float x) {
  return {uint16_t(x == x ? bits_of(x) : 0)};
}
template <>
__device__ __forceinline__ Half from_work<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

}  // namespace onepass::cuda
