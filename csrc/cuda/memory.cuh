// Global memory. Accesses to elements and statistics go through load, load_fresh and store, 16 bytes at a time where it
// can; so what a step moves can be counted, by operand, when the kernels run on a CPU (tests/emulated).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../plan.h"
#include "number.cuh"

#ifndef ONEPASS_TRACE
#define ONEPASS_TRACE(operand, bytes, is_store)
#endif

// Without this, nvcc takes pointers that were loaded from memory for generic ones, whose accesses are slower.
#ifdef __CUDACC__
#define ONEPASS_GLOBAL(pointer) __builtin_assume(__isGlobal(pointer))
#else
#define ONEPASS_GLOBAL(pointer)
#endif

namespace onepass::cuda {

enum Operand : int { of_p, of_g, of_m, of_v, of_plan, of_stats, operands };

template <class T>
__device__ __forceinline__ T load(const T* from, Operand operand) {
  ONEPASS_TRACE(operand, sizeof(T), false);
  ONEPASS_GLOBAL(from);
  return *from;
}

template <class T>
__device__ __forceinline__ void store(T* to, const T& x, Operand operand) {
  ONEPASS_TRACE(operand, sizeof(T), true);
  ONEPASS_GLOBAL(to);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 1000
  // nvcc 13.0 splits `*to = x` into narrow stores in `update` for sm_80 to sm_90. For sm_100 and sm_120 it does not,
  // and this instruction would cost `update` for float32 Adam two spills on sm_120.
  if constexpr (sizeof(T) == 16) {
    const uint4 words = __builtin_bit_cast(uint4, x);
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.x),
                 "r"(words.y), "r"(words.z), "r"(words.w)
                 : "memory");
    return;
  }
#endif
  *to = x;
}

// Reads what other blocks have written during this launch: bypasses the first-level cache, which may be stale.
template <class T>
__device__ __forceinline__ T load_fresh(const T* from, Operand operand) {
  ONEPASS_TRACE(operand, sizeof(T), false);
  return __ldcg(from);
}

// 16 bytes.
template <class T>
struct alignas(16) Vector {
  static constexpr int lanes = 16 / sizeof(T);
  T x[lanes];
};

// A span of a tensor: `length` elements from element `first`, walked in vectors of `lanes` elements. The first
// starts `phase` elements before the span, so that vectors lie on 16-byte boundaries of p; it and the last may be
// partial.
template <int lanes>
struct Span {
  int64_t first;
  int length, phase;

  __device__ __forceinline__ int vectors() const { return (phase + length + lanes - 1) / lanes; }
  __device__ __forceinline__ int at(int vector) const { return vector * lanes - phase; }
  __device__ __forceinline__ bool whole(int at) const { return at >= 0 && at + lanes <= length; }
  __device__ __forceinline__ bool holds(int at) const { return at >= 0 && at < length; }
};

// Where some elements of a tensor are. Packed: those from `at` of a span on, in every operand.
template <int lanes>
struct PackedPlace {
  const Span<lanes>& s;
  int at;
  int64_t index;  // of the first of them in the tensor; one for all operands, which saves registers
};
// Strided: one element, so many elements from the first of each operand.
struct StridedPlace {
  int64_t offset[2 + max_moments];
};

// layout: sizes of the dimensions, then the strides of each operand.
template <int operand_count>
__device__ __forceinline__ StridedPlace strided_place(const int64_t* layout, int dims, uint64_t element) {
  StridedPlace place{};
  for (int d = dims - 1; d >= 0; --d) {
    const uint64_t size = load(layout + d, of_plan), rest = element / size;
    const int64_t index = element - rest * size;
#pragma unroll
    for (int operand = 0; operand < operand_count; ++operand)
      place.offset[operand] += index * load(layout + (1 + operand) * dims + d, of_plan);
    element = rest;
  }
  return place;
}

// One operand of a packed tensor, stored as T. `vectors`: it lies on 16-byte boundaries wherever p does.
template <class T, Operand operand>
struct Packed {
  typedef Vector<std::remove_const_t<T>> Whole;

  T* data;
  bool vectors;

  // Elements outside of the span read as 0 and are not written.
  template <class S, int lanes>
  __device__ __forceinline__ void read(const PackedPlace<lanes>& place, S (&x)[lanes]) const {
    const auto [s, at, index] = place;
    T* const from = data + index;
    if (vectors && s.whole(at)) {
#pragma unroll
      for (int i = 0; i < lanes; i += Whole::lanes) {
        const Whole v = load(reinterpret_cast<const Whole*>(from + i), operand);
#pragma unroll
        for (int j = 0; j < Whole::lanes; ++j) x[i + j] = to_work(v.x[j]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < lanes; ++i) x[i] = s.holds(at + i) ? to_work(load(from + i, operand)) : S(0);
    }
  }

  template <class S, int lanes>
  __device__ __forceinline__ void write(const PackedPlace<lanes>& place, const S (&x)[lanes]) const {
    const auto [s, at, index] = place;
    T* const to = data + index;
    if (vectors && s.whole(at)) {
#pragma unroll
      for (int i = 0; i < lanes; i += Whole::lanes) {
        Whole v;
#pragma unroll
        for (int j = 0; j < Whole::lanes; ++j) v.x[j] = from_work<T>(x[i + j]);
        store(reinterpret_cast<Whole*>(to + i), v, operand);
      }
    } else {
#pragma unroll
      for (int i = 0; i < lanes; ++i)
        if (s.holds(at + i)) store(to + i, from_work<T>(x[i]), operand);
    }
  }
};

// One operand of a tensor of any layout: an element at a time.
template <class T, Operand operand>
struct Strided {
  T* data;

  template <class S>
  __device__ __forceinline__ void read(const StridedPlace& place, S (&x)[1]) const {
    x[0] = to_work(load(data + place.offset[operand], operand));
  }
  template <class S>
  __device__ __forceinline__ void write(const StridedPlace& place, const S (&x)[1]) const {
    store(data + place.offset[operand], from_work<T>(x[0]), operand);
  }
};

}  // namespace onepass::cuda
