// Pack<S, n>: the elements that a lane works on at a time, with the operations that the rules use. Every operation
// rounds as IEEE 754 asks for.
//
// nvcc ends each quotient and each root of floats in a branch to a slow path, so that those of neighbouring elements
// cannot overlap, and a lane waits for one after the other. Here a pack shares one branch: if all exponents lie in a
// window in which nothing can overflow or underflow, the elements take the same sequence as nvcc's, side by side;
// tests/rule/test_cuda_arithmetic.py proves its bits.
#pragma once

#include <cmath>
#include <limits>

#include "number.cuh"

namespace onepass::cuda {

// Approximations of the hardware: within 1 unit in the last place, and with a relative error of 2^-22.9.
__device__ __forceinline__ float approximate_reciprocal(float x) {
#ifdef __CUDACC__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulated::approximate_reciprocal(x);
#endif
}
__device__ __forceinline__ float approximate_inverse_root(float x) {
#ifdef __CUDACC__
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return emulated::approximate_inverse_root(x);
#endif
}

// Bits 29 and 30 tell where x lies: bit 30 is set for |x| in [2^lowest, 2^(lowest + 128)), both are in the upper half
// of that range. The AND of several tells where all of them lie.
template <int lowest>
__device__ __forceinline__ uint32_t window(float x) {
  return bits_of(x) + (uint32_t(1 - lowest) << 23);
}
constexpr uint32_t window_bit = 1u << 30, upper_half_bits = 3u << 29;

// Correct for x in [2^-100, 2^126].
__device__ __forceinline__ float root_in_window(float x) {
  const float y = approximate_inverse_root(x), root = x * y;
  return std::fma(std::fma(-root, root, x), 0.5f * y, root);
}

// Correct for |a| in [2^-96, 2^32) and |b| in [2^-44, 2^20).
__device__ __forceinline__ float quotient_in_window(float a, float b) {
  const float approximation = approximate_reciprocal(b);
  const float y = std::fma(approximation, std::fma(-b, approximation, 1.0f), approximation), q = a * y;
  return std::fma(y, std::fma(-b, q, a), q);
}

// Correct for every x. Scaled by a power of 4, a small x has its root in the window.
__device__ __forceinline__ float root_of_any(float x) {
  const bool small = x < 0x1p-96f;
  const float root = root_in_window(small ? x * 0x1p64f : x);
  return x == 0 || x == std::numeric_limits<float>::infinity() ? x : small ? root * 0x1p-32f : root;
}

// The quotient of zero, the first moment where no gradient has come yet, without a call.
__device__ __forceinline__ float quotient_of_any(float a, float b) {
  return a == 0 && b > 0 ? a : a / b;
}

template <class S, int n>
struct Pack {
  S x[n];

  Pack() = default;
  __device__ __forceinline__ Pack(S same) {
#pragma unroll
    for (int i = 0; i < n; ++i) x[i] = same;
  }

#define ONEPASS_OPERATOR(op)                                                         \
  friend __device__ __forceinline__ Pack operator op(const Pack& a, const Pack& b) { \
    Pack out;                                                                        \
    _Pragma("unroll") for (int i = 0; i < n; ++i) out.x[i] = a.x[i] op b.x[i];       \
    return out;                                                                      \
  }
  ONEPASS_OPERATOR(+)
  ONEPASS_OPERATOR(-)
  ONEPASS_OPERATOR(*)
#undef ONEPASS_OPERATOR

  friend __device__ __forceinline__ Pack where_zero(const Pack& a, const Pack& instead) {
    Pack out;
#pragma unroll
    for (int i = 0; i < n; ++i) out.x[i] = a.x[i] == S(0) ? instead.x[i] : a.x[i];
    return out;
  }

  friend __device__ __forceinline__ Pack operator/(const Pack& a, const Pack& b) {
    Pack out;
    if constexpr (sizeof(S) == 8) {
#pragma unroll
      for (int i = 0; i < n; ++i) out.x[i] = a.x[i] / b.x[i];
    } else {
      uint32_t of_a = ~uint32_t(0), of_b = ~uint32_t(0);
#pragma unroll
      for (int i = 0; i < n; ++i) of_a &= window<-96>(a.x[i]), of_b &= window<-108>(b.x[i]);
      if ((of_a & window_bit) && (of_b & upper_half_bits) == upper_half_bits) {
#pragma unroll
        for (int i = 0; i < n; ++i) out.x[i] = quotient_in_window(a.x[i], b.x[i]);
      } else {
#pragma unroll
        for (int i = 0; i < n; ++i) out.x[i] = quotient_of_any(a.x[i], b.x[i]);
      }
    }
    return out;
  }

  friend __device__ __forceinline__ Pack sqrt(const Pack& a) {
    Pack out;
    if constexpr (sizeof(S) == 8) {
#pragma unroll
      for (int i = 0; i < n; ++i) out.x[i] = std::sqrt(a.x[i]);
    } else {
      uint32_t of_a = ~uint32_t(0);
#pragma unroll
      for (int i = 0; i < n; ++i) of_a &= window<-100>(a.x[i]);
      if (of_a & window_bit) {
#pragma unroll
        for (int i = 0; i < n; ++i) out.x[i] = root_in_window(a.x[i]);
      } else {
#pragma unroll
        for (int i = 0; i < n; ++i) out.x[i] = root_of_any(a.x[i]);
      }
    }
    return out;
  }
};

}  // namespace onepass::cuda
