// Global memory. Accesses to elements and statistics are counted, by operand, when the kernels run on a CPU
// (tests/emulated).
#pragma once

#include <cstdint>
#include <type_traits>

#include "../plan.h"
#include "pack.cuh"

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

// of_r: the remainder of a Master.
enum Operand : int { of_p, of_g, of_m, of_v, of_r, of_plan, of_stats, operands };

// The operands of elements are read and written once a step, and are not to push out of the caches what is read again:
// no line of the first-level cache for a load, the first to be evicted for a store. Instructions of their own also
// because nvcc 13.0 splits `*to = x` into narrow stores in `update` for sm_80 to sm_90.
#ifdef __CUDACC__
template <class T>
__device__ __forceinline__ T load_streamed(const T* from) {
  const auto global = __cvta_generic_to_global(from);
  if constexpr (sizeof(T) == 16) {
    uint4 x;
    asm volatile("ld.global.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "l"(global));
    return __builtin_bit_cast(T, x);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t x;
    asm volatile("ld.global.L1::no_allocate.b32 %0, [%1];" : "=r"(x) : "l"(global));
    return __builtin_bit_cast(T, x);
  } else {
    static_assert(sizeof(T) == 8);
    uint2 x;
    asm volatile("ld.global.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(x.x), "=r"(x.y) : "l"(global));
    return __builtin_bit_cast(T, x);
  }
}
template <class T>
__device__ __forceinline__ void store_streamed(T* to, const T& x) {
  const auto global = __cvta_generic_to_global(to);
  if constexpr (sizeof(T) == 16) {
    const uint4 words = __builtin_bit_cast(uint4, x);
    asm volatile("st.global.cs.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(global), "r"(words.x), "r"(words.y), "r"(words.z),
                 "r"(words.w)
                 : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.global.cs.b32 [%0], %1;" ::"l"(global), "r"(__builtin_bit_cast(uint32_t, x)) : "memory");
  } else {
    static_assert(sizeof(T) == 8);
    const uint2 words = __builtin_bit_cast(uint2, x);
    asm volatile("st.global.cs.v2.b32 [%0], {%1, %2};" ::"l"(global), "r"(words.x), "r"(words.y) : "memory");
  }
}
#else
template <class T>
T load_streamed(const T* from) {
  emulated::check_alignment(from, sizeof(T));
  return *from;
}
template <class T>
void store_streamed(T* to, const T& x) {
  emulated::check_alignment(to, sizeof(T));
  *to = x;
}
#endif

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
  *to = x;
}

// Has a line of memory brought into the first-level cache, without waiting for it.
__device__ __forceinline__ void prefetch([[maybe_unused]] const void* from) {
#ifdef __CUDACC__
  asm volatile("prefetch.global.L1 [%0];" ::"l"(__cvta_generic_to_global(from)));
#endif
}

// Reads what other blocks have written during this launch: bypasses the first-level cache, which may be stale.
template <class T>
__device__ __forceinline__ T load_fresh(const T* from, Operand operand) {
  ONEPASS_TRACE(operand, sizeof(T), false);
  return __ldcg(from);
}

// The elements that a lane reads or writes at once: as many of every operand, so that neighbouring lanes fill sectors
// together. Four, of 4, 8 or 16 bytes, and two of float64.
template <class T>
constexpr int vector_lanes = sizeof(T) == 8 ? 2 : 4;

template <class T, int n>
struct alignas(n * sizeof(T)) Vector {
  T x[n];
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
  // The vectors that are whole: from this one on, up to that.
  __device__ __forceinline__ int first_whole() const { return phase > 0 ? 1 : 0; }
  __device__ __forceinline__ int end_of_whole() const { return (phase + length) / lanes; }
  __device__ __forceinline__ bool holds(int at) const { return at >= 0 && at < length; }
};

// Where some elements of a tensor are. Packed: those from `at` of a span on, in every operand.
template <int lanes>
struct PackedPlace {
  const Span<lanes>& s;
  int at;
  int64_t index;  // of the first of them in the tensor; one for all operands, which saves registers

  // In the whole tensor. Rows are whole: `update` has no registers left to find those that are split, which are
  // strided.
  __device__ __forceinline__ int64_t in_whole(const WholePlace& whole) const { return whole.first + index; }
};
// Strided: one element, so many elements from the first of each operand.
struct StridedPlace {
  int64_t offset[3 + max_moments];
  int64_t index;  // in the order of the shape

  __device__ __forceinline__ int64_t in_whole(const WholePlace& whole) const { return whole.of(index); }
};

// layout: sizes of the dimensions, then the strides of each operand, of which so many moments and the remainder are
// read.
template <int moments, bool with_remainder>
__device__ __forceinline__ StridedPlace strided_place(const int64_t* layout, int dims, uint64_t element) {
  StridedPlace place{};
  place.index = element;
  for (int d = dims - 1; d >= 0; --d) {
    const uint64_t size = load(layout + d, of_plan), rest = element / size;
    const int64_t index = element - rest * size;
#pragma unroll
    for (int operand = 0; operand < 3 + max_moments; ++operand)
      if (operand < 2 + moments || (operand == of_r && with_remainder))
        place.offset[operand] += index * load(layout + (1 + operand) * dims + d, of_plan);
    element = rest;
  }
  return place;
}

// One operand of a packed tensor, stored as T.
template <class T, Operand operand>
struct Packed {
  T* data;

  // whole: the vector lies in the span and, like those of all operands, on its boundary. Else an element at a time;
  // those outside of the span read as 0 and are not written.
  template <bool whole, class S, int lanes>
  __device__ __forceinline__ void read(const PackedPlace<lanes>& place, Pack<S, lanes>& x) const {
    T* const from = data + place.index;
    if constexpr (whole) {
      typedef Vector<std::remove_const_t<T>, lanes> Whole;
      ONEPASS_TRACE(operand, sizeof(Whole), false);
      const Whole v = load_streamed(reinterpret_cast<const Whole*>(from));
#pragma unroll
      for (int i = 0; i < lanes; ++i) x.x[i] = to_work(v.x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < lanes; ++i) x.x[i] = place.s.holds(place.at + i) ? to_work(load(from + i, operand)) : S(0);
    }
  }

  template <bool whole, class S, int lanes>
  __device__ __forceinline__ void write(const PackedPlace<lanes>& place, const Pack<S, lanes>& x) const {
    T* const to = data + place.index;
    if constexpr (whole) {
      Vector<T, lanes> v;
#pragma unroll
      for (int i = 0; i < lanes; ++i) v.x[i] = from_work<T>(x.x[i]);
      ONEPASS_TRACE(operand, sizeof v, true);
      store_streamed(reinterpret_cast<Vector<T, lanes>*>(to), v);
    } else {
#pragma unroll
      for (int i = 0; i < lanes; ++i)
        if (place.s.holds(place.at + i)) store(to + i, from_work<T>(x.x[i]), operand);
    }
  }
};

// One operand of a tensor of any layout: an element at a time.
template <class T, Operand operand>
struct Strided {
  T* data;

  template <bool whole, class S>
  __device__ __forceinline__ void read(const StridedPlace& place, Pack<S, 1>& x) const {
    x.x[0] = to_work(load(data + place.offset[operand], operand));
  }
  template <bool whole, class S>
  __device__ __forceinline__ void write(const StridedPlace& place, const Pack<S, 1>& x) const {
    store(data + place.offset[operand], from_work<T>(x.x[0]), operand);
  }
};

// Gradients of the dtype of their parameters or, where that has 16 bits, of float32, by Stream<element, operand>.
template <class Element, template <class, Operand> class Stream>
struct Gradients {
  const void* data;
  const bool* at_wide;  // read at every access: `update` has no registers left for it

  __device__ __forceinline__ bool is_wide() const { return sizeof(Element) == 2 && *at_wide; }

  template <bool whole, class Place, class X>
  __device__ __forceinline__ void read(const Place& place, X& x) const {
    if (is_wide())
      Stream<const float, of_g>{static_cast<const float*>(data)}.template read<whole>(place, x);
    else
      Stream<const Element, of_g>{static_cast<const Element*>(data)}.template read<whole>(place, x);
  }
};

// What the random bits of a tensor's elements come from, read at every access: `update` has no registers left for it.
struct DrawSource {
  const DrawKey* step;
  const uint32_t* number;
  const WholePlace* whole_place;

  __device__ __forceinline__ DrawKey key() const { return step->with(*number); }
};

// The weights of a tensor that is stored as P, by Stream<element, operand>.
template <class P, template <class, Operand> class Stream>
struct Weights : Stream<P, of_p> {
  __device__ __forceinline__ Weights(void* p, void* const*, const DrawSource&) : Stream<P, of_p>{static_cast<P*>(p)} {}

  __device__ __forceinline__ const void* address(int64_t element) const { return this->data + element; }
};
template <template <class, Operand> class Stream>
struct Weights<Master, Stream> {
  Stream<MasterParameter, of_p> parameter;
  void* const* at_remainder;  // read at every access: `update` has no registers left for another address

  __device__ __forceinline__ Weights(void* p, void* const* at_remainder, const DrawSource&)
      : parameter{static_cast<MasterParameter*>(p)}, at_remainder(at_remainder) {}

  __device__ __forceinline__ Stream<MasterRemainder, of_r> remainder() const {
    return {static_cast<MasterRemainder*>(*at_remainder)};
  }

  __device__ __forceinline__ const void* address(int64_t element) const { return parameter.data + element; }

  template <bool whole, class Place, int lanes>
  __device__ __forceinline__ void read(const Place& place, Pack<float, lanes>& x) const {
    Pack<float, lanes> low;
    parameter.template read<whole>(place, x);
    remainder().template read<whole>(place, low);
#pragma unroll
    for (int i = 0; i < lanes; ++i) x.x[i] = joined(x.x[i], low.x[i]);
  }
  template <bool whole, class Place, int lanes>
  __device__ __forceinline__ void write(const Place& place, const Pack<float, lanes>& x) const {
    parameter.template write<whole>(place, x);
    remainder().template write<whole>(place, x);
  }
};
template <template <class, Operand> class Stream>
struct Weights<Stochastic, Stream> : Weights<BFloat16, Stream> {
  DrawSource source;

  __device__ __forceinline__ Weights(void* p, void* const* at_remainder, const DrawSource& source)
      : Weights<BFloat16, Stream>(p, at_remainder, source), source(source) {}

  template <bool whole, class Place, int lanes>
  __device__ __forceinline__ void write(const Place& place, Pack<float, lanes> x) const {
    const DrawKey key = source.key();
#pragma unroll
    for (int i = 0; i < lanes; ++i)
      x.x[i] = rounded_up(x.x[i], draw_at(key, place.in_whole(*source.whole_place) + i) & 0xffff);
    Weights<BFloat16, Stream>::template write<whole>(place, x);  // which has nothing left to round
  }
};

}  // namespace onepass::cuda
