// Pack<S>: 64 bytes of float or double, in the registers of the instruction set this file is compiled for. A pack has
// the same number of lanes everywhere, so sums over lanes have the same order and the same bits everywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

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

#define ONEPASS_OPERATOR(op)                                                    \
  friend ONEPASS_INLINE Pack operator op(Pack a, Pack b) {                      \
    return Pack(a.low op b.low, a.high op b.high);                              \
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

#define ONEPASS_OPERATOR(op) \
  friend ONEPASS_INLINE Pack operator op(Pack a, Pack b) { return Pack(a.v op b.v); }
  ONEPASS_OPERATOR(+)
  ONEPASS_OPERATOR(-)
  ONEPASS_OPERATOR(*)
  ONEPASS_OPERATOR(/)
#undef ONEPASS_OPERATOR

  friend ONEPASS_INLINE Pack where_zero(Pack x, Pack instead) { return Pack(x.v == Vector{} ? instead.v : x.v); }

  friend ONEPASS_INLINE Pack sqrt(Pack x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == 4) return Pack((Vector)_mm512_maskz_sqrt_ps(all16, (__m512)x.v));
    else return Pack((Vector)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)x.v));
#elif defined(__AVX2__)
    if constexpr (sizeof(S) == 4) return Pack((Vector)_mm256_sqrt_ps((__m256)x.v));
    else return Pack((Vector)_mm256_sqrt_pd((__m256d)x.v));
#elif defined(__x86_64__)
    if constexpr (sizeof(S) == 4) return Pack((Vector)_mm_sqrt_ps((__m128)x.v));
    else return Pack((Vector)_mm_sqrt_pd((__m128d)x.v));
#else
    for (int i = 0; i < lanes; ++i) x.v[i] = std::sqrt(x.v[i]);
    return x;
#endif
  }
};

// How a parameter is stored, and the number it is worked on as.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
template <class P>
struct WorkOf {
  typedef float type;
};
template <>
struct WorkOf<double> {
  typedef double type;
};

// One register of a parameter stored as P.
typedef Pack<float, ONEPASS_VECTOR_BYTES> Floats;
typedef VectorOf<uint32_t, ONEPASS_VECTOR_BYTES>::type Bits32;
typedef VectorOf<uint16_t, ONEPASS_VECTOR_BYTES / 2>::type Bits16;

template <class To, class From>
ONEPASS_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class S>
ONEPASS_INLINE void load_register(const S* from, Pack<S, ONEPASS_VECTOR_BYTES>& x) {
  std::memcpy(&x.v, from, sizeof x.v);
}
template <class S>
ONEPASS_INLINE void store_register(S* to, const Pack<S, ONEPASS_VECTOR_BYTES>& x) {
  std::memcpy(to, &x.v, sizeof x.v);
}

// 16 bits to 32 and back. __builtin_convertvector says the same, but g++ 12 makes twice the instructions of it.
ONEPASS_INLINE Bits32 widen(const void* from) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_maskz_cvtepu16_epi32(all16, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  Bits16 bits;
  std::memcpy(&bits, from, sizeof bits);
  return __builtin_convertvector(bits, Bits32);
#endif
}

ONEPASS_INLINE void narrow(void* to, Bits32 bits) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtepi32_epi16(all16, (__m512i)bits));
#elif defined(__AVX2__)
  __m256i halves = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);  // of each 128 bits, twice
  _mm_storeu_si128((__m128i*)to, _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0b1000)));
#else
  Bits16 low = __builtin_convertvector(bits, Bits16);
  std::memcpy(to, &low, sizeof low);
#endif
}

ONEPASS_INLINE void load_register(const BFloat16* from, Floats& x) {
  x.v = bits_as<Floats::Vector>(widen(from) << 16);
}

// Round to nearest even; a NaN stays one.
ONEPASS_INLINE void store_register(BFloat16* to, const Floats& x) {
  Bits32 bits = bits_as<Bits32>(x.v);
  Bits32 rounded = bits + (((bits >> 16) & 1) + 0x7fff);
  narrow(to, (x.v == x.v ? rounded : (bits | 0x400000)) >> 16);
}

#if defined(__AVX512F__)
ONEPASS_INLINE void load_register(const Half* from, Floats& x) {
  x.v = (Floats::Vector)_mm512_maskz_cvtph_ps(all16, _mm256_loadu_si256((const __m256i*)from));
}
ONEPASS_INLINE void store_register(Half* to, const Floats& x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(all16, (__m512)x.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
ONEPASS_INLINE void load_register(const Half* from, Floats& x) {
  x.v = (Floats::Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
}
ONEPASS_INLINE void store_register(Half* to, const Floats& x) {
  _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph((__m256)x.v, _MM_FROUND_TO_NEAREST_INT));
}
#else
ONEPASS_INLINE float from_half(uint16_t h) {
  uint32_t magnitude = h & 0x7fff, bits;
  if (magnitude >= 0x7c00) bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0);
  else if (magnitude >= 0x400) bits = (magnitude << 13) + (112u << 23);
  else bits = bits_as<uint32_t>(float(magnitude) * 0x1p-24f);  // subnormal
  return bits_as<float>(bits | uint32_t(h & 0x8000) << 16);
}

ONEPASS_INLINE uint16_t to_half(float x) {
  uint32_t bits = bits_as<uint32_t>(x);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | uint16_t((bits >> 13) & 0x3ff);
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (bits < 0x38800000)  // subnormal: adding 1/2 leaves the rounded integer in the low bits
    return sign | uint16_t(bits_as<uint32_t>(bits_as<float>(bits) + 0.5f) - 0x3f000000);
  bits += 0xfff + ((bits >> 13) & 1);
  return sign | uint16_t((bits - (112u << 23)) >> 13);
}

ONEPASS_INLINE void load_register(const Half* from, Floats& x) {
  for (int i = 0; i < Floats::lanes; ++i) x.v[i] = from_half(from[i].bits);
}
ONEPASS_INLINE void store_register(Half* to, const Floats& x) {
  for (int i = 0; i < Floats::lanes; ++i) to[i].bits = to_half(x.v[i]);
}
#endif

template <class P, class S, int bytes>
ONEPASS_INLINE void load_into(const P* from, Pack<S, bytes>& x) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    load_register(from, x);
  } else {
    load_into(from, x.low);
    load_into(from + x.low.lanes, x.high);
  }
}

// A whole pack.
template <class P>
ONEPASS_INLINE Pack<typename WorkOf<P>::type> load(const P* from) {
  Pack<typename WorkOf<P>::type> x;
  load_into(from, x);
  return x;
}
template <class P, class S, int bytes>
ONEPASS_INLINE void store(P* to, const Pack<S, bytes>& x) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    store_register(to, x);
  } else {
    store(to, x.low);
    store(to + x.low.lanes, x.high);
  }
}

// Two packs of consecutive elements, in whichever order is cheapest, for sums that do not care: the same one for both
// operands of a product, and on every machine.
template <class P>
ONEPASS_INLINE void load_unordered(const P* from, Pack<typename WorkOf<P>::type>& a, Pack<typename WorkOf<P>::type>& b) {
  a = load(from);
  b = load(from + a.lanes);
}

template <int bytes>
ONEPASS_INLINE void split_pairs(const BFloat16* from, Pack<float, bytes>& even, Pack<float, bytes>& odd) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    Bits32 pairs;
    std::memcpy(&pairs, from, sizeof pairs);
    even.v = bits_as<Floats::Vector>(pairs << 16);
    odd.v = bits_as<Floats::Vector>(pairs & 0xffff0000);
  } else {
    split_pairs(from, even.low, odd.low);
    split_pairs(from + 2 * even.low.lanes, even.high, odd.high);
  }
}

ONEPASS_INLINE void load_unordered(const BFloat16* from, Pack<float>& a, Pack<float>& b) { split_pairs(from, a, b); }

// The first n lanes; the others read as 0 and are not written.
template <class P>
ONEPASS_INLINE auto load(const P* from, int n) {
  P full[Pack<typename WorkOf<P>::type>::lanes] = {};
  std::memcpy(full, from, n * sizeof(P));
  return load(full);
}
template <class P>
ONEPASS_INLINE void store(P* to, const Pack<typename WorkOf<P>::type>& x, int n) {
  P full[Pack<typename WorkOf<P>::type>::lanes];
  store(full, x);
  std::memcpy(to, full, n * sizeof(P));
}

}  // namespace ONEPASS_ISA
}  // namespace onepass
