// Pack<S>: 64 bytes of float or double, in the registers of the instruction set this file is compiled for. A pack has
// the same number of lanes everywhere, so sums over lanes have the same order and the same bits everywhere.
#pragma once

#include <cmath>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define ONEPASS_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define ONEPASS_VECTOR_BYTES 32
#else
#define ONEPASS_VECTOR_BYTES 16
#endif

#define ONEPASS_INLINE inline __attribute__((always_inline))

namespace onepass {
namespace ONEPASS_ISA {

#if defined(__AVX512F__)
// The zero-masked intrinsics under a full mask: the plain ones start from an undefined register, which g++ 12 reports
// as a use of an uninitialized variable. The machine code is the same.
constexpr __mmask16 all16 = __mmask16(-1);
#endif

template <class T, int bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(bytes)));
};

// Two halves until a half is one register. (An array of registers instead makes g++ 12 go through the stack: measured
// ten times slower.)
template <class S, int bytes = 64>
struct Pack {
  static constexpr int lanes = bytes / sizeof(S);
  typedef Pack<S, bytes / 2> Part;

  Part low, high;

  Pack() = default;
  ONEPASS_INLINE Pack(S x) : low(x), high(x) {}
  ONEPASS_INLINE Pack(Part l, Part h) : low(l), high(h) {}

#define ONEPASS_OPERATOR(op)                               \
  friend ONEPASS_INLINE Pack operator op(Pack a, Pack b) { \
    return Pack(a.low op b.low, a.high op b.high);         \
  }
  ONEPASS_OPERATOR(+)
  ONEPASS_OPERATOR(-)
  ONEPASS_OPERATOR(*)
  ONEPASS_OPERATOR(/)
#undef ONEPASS_OPERATOR

  friend ONEPASS_INLINE Pack where_zero(Pack x, Pack instead) {
    return Pack(where_zero(x.low, instead.low), where_zero(x.high, instead.high));
  }
  friend ONEPASS_INLINE Pack sqrt(Pack x) { return Pack(sqrt(x.low), sqrt(x.high)); }
};

template <class S>
struct Pack<S, ONEPASS_VECTOR_BYTES> {
  static constexpr int lanes = ONEPASS_VECTOR_BYTES / sizeof(S);
  typedef typename VectorOf<S, ONEPASS_VECTOR_BYTES>::type Vector;

  Vector v;

  Pack() = default;
  ONEPASS_INLINE Pack(S x) : v(x - Vector{}) {}
  ONEPASS_INLINE Pack(Vector x) : v(x) {}

#define ONEPASS_OPERATOR(op)                               \
  friend ONEPASS_INLINE Pack operator op(Pack a, Pack b) { \
    return Pack(a.v op b.v);                               \
  }
  ONEPASS_OPERATOR(+)
  ONEPASS_OPERATOR(-)
  ONEPASS_OPERATOR(*)
  ONEPASS_OPERATOR(/)
#undef ONEPASS_OPERATOR

  friend ONEPASS_INLINE Pack where_zero(Pack x, Pack instead) { return Pack(x.v == Vector{} ? instead.v : x.v); }

  friend ONEPASS_INLINE Pack sqrt(Pack x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == 4)
      return Pack((Vector)_mm512_maskz_sqrt_ps(all16, (__m512)x.v));
    else
      return Pack((Vector)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)x.v));
#elif defined(__AVX2__)
    if constexpr (sizeof(S) == 4)
      return Pack((Vector)_mm256_sqrt_ps((__m256)x.v));
    else
      return Pack((Vector)_mm256_sqrt_pd((__m256d)x.v));
#elif defined(__x86_64__)
    if constexpr (sizeof(S) == 4)
      return Pack((Vector)_mm_sqrt_ps((__m128)x.v));
    else
      return Pack((Vector)_mm_sqrt_pd((__m128d)x.v));
#else
    for (int i = 0; i < lanes; ++i) x.v[i] = std::sqrt(x.v[i]);
    return x;
#endif
  }
};

}  // namespace ONEPASS_ISA
}  // namespace onepass
