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

template <class S>
struct Pack {
  static constexpr int lanes = 64 / sizeof(S);
  static constexpr int parts = 64 / ONEPASS_VECTOR_BYTES;
  static constexpr int width = lanes / parts;
  typedef typename VectorOf<S, ONEPASS_VECTOR_BYTES>::type Vector;

  Vector part[parts];

  Pack() = default;
  ONEPASS_INLINE Pack(S x) {
    for (int i = 0; i < parts; ++i) part[i] = x - Vector{};
  }

#define ONEPASS_OPERATOR(op)                                      \
  friend ONEPASS_INLINE Pack operator op(Pack a, const Pack& b) { \
    for (int i = 0; i < parts; ++i) a.part[i] = a.part[i] op b.part[i]; \
    return a;                                                     \
  }
  ONEPASS_OPERATOR(+)
  ONEPASS_OPERATOR(-)
  ONEPASS_OPERATOR(*)
  ONEPASS_OPERATOR(/)
#undef ONEPASS_OPERATOR

  friend ONEPASS_INLINE Pack where_zero(Pack x, const Pack& instead) {
    for (int i = 0; i < parts; ++i) x.part[i] = x.part[i] == Vector{} ? instead.part[i] : x.part[i];
    return x;
  }

  friend ONEPASS_INLINE Pack sqrt(Pack x) {
    for (int i = 0; i < parts; ++i) x.part[i] = root(x.part[i]);
    return x;
  }

 private:
  static ONEPASS_INLINE Vector root(Vector x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(S) == 4) return (Vector)_mm512_maskz_sqrt_ps(all16, (__m512)x);
    else return (Vector)_mm512_maskz_sqrt_pd(__mmask8(-1), (__m512d)x);
#elif defined(__AVX2__)
    if constexpr (sizeof(S) == 4) return (Vector)_mm256_sqrt_ps((__m256)x);
    else return (Vector)_mm256_sqrt_pd((__m256d)x);
#elif defined(__x86_64__)
    if constexpr (sizeof(S) == 4) return (Vector)_mm_sqrt_ps((__m128)x);
    else return (Vector)_mm_sqrt_pd((__m128d)x);
#else
    for (int i = 0; i < width; ++i) x[i] = std::sqrt(x[i]);
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

template <class S>
ONEPASS_INLINE Pack<S> load(const S* from) {
  Pack<S> x;
  std::memcpy(x.part, from, 64);
  return x;
}

template <class S>
ONEPASS_INLINE void store(S* to, const Pack<S>& x) {
  std::memcpy(to, x.part, 64);
}

constexpr int float_width = Pack<float>::width;
typedef VectorOf<uint32_t, ONEPASS_VECTOR_BYTES>::type Bits32;
typedef VectorOf<uint16_t, ONEPASS_VECTOR_BYTES / 2>::type Bits16;

ONEPASS_INLINE Pack<float> load(const BFloat16* from) {
  Pack<float> x;
  for (int i = 0; i < Pack<float>::parts; ++i) {
    Bits16 narrow;
    std::memcpy(&narrow, from + i * float_width, sizeof narrow);
    Bits32 bits = __builtin_convertvector(narrow, Bits32) << 16;
    std::memcpy(&x.part[i], &bits, sizeof bits);
  }
  return x;
}

// Round to nearest even; a NaN stays one.
ONEPASS_INLINE void store(BFloat16* to, const Pack<float>& x) {
  for (int i = 0; i < Pack<float>::parts; ++i) {
    Bits32 bits;
    std::memcpy(&bits, &x.part[i], sizeof bits);
    Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    Bits32 quiet = (bits >> 16) | 0x40;
    Bits16 narrow = __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded, Bits16);
    std::memcpy(to + i * float_width, &narrow, sizeof narrow);
  }
}

#if defined(__AVX512F__)
ONEPASS_INLINE Pack<float> load(const Half* from) {
  Pack<float> x;
  x.part[0] = (Pack<float>::Vector)_mm512_maskz_cvtph_ps(all16, _mm256_loadu_si256((const __m256i*)from));
  return x;
}
ONEPASS_INLINE void store(Half* to, const Pack<float>& x) {
  _mm256_storeu_si256((__m256i*)to, _mm512_maskz_cvtps_ph(all16, (__m512)x.part[0], _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
ONEPASS_INLINE Pack<float> load(const Half* from) {
  Pack<float> x;
  for (int i = 0; i < 2; ++i)
    x.part[i] = (Pack<float>::Vector)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8 * i)));
  return x;
}
ONEPASS_INLINE void store(Half* to, const Pack<float>& x) {
  for (int i = 0; i < 2; ++i)
    _mm_storeu_si128((__m128i*)(to + 8 * i), _mm256_cvtps_ph((__m256)x.part[i], _MM_FROUND_TO_NEAREST_INT));
}
#else
ONEPASS_INLINE float from_half(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000) << 16, magnitude = h & 0x7fff, bits;
  if (magnitude >= 0x7c00) {
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0);
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + (112u << 23);
  } else {  // subnormal: an integer times 2^-24
    float x = float(magnitude) * 0x1p-24f;
    std::memcpy(&bits, &x, 4);
  }
  bits |= sign;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

ONEPASS_INLINE uint16_t to_half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | uint16_t((bits >> 13) & 0x3ff);
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (bits < 0x38800000) {                       // subnormal: the sum leaves the rounded integer in the low bits
    float magnitude, magic = 0.5f;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += magic;
    std::memcpy(&bits, &magnitude, 4);
    return sign | uint16_t(bits - 0x3f000000);
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return sign | uint16_t((bits - (112u << 23)) >> 13);
}

ONEPASS_INLINE Pack<float> load(const Half* from) {
  float lane[16];
  for (int i = 0; i < 16; ++i) lane[i] = from_half(from[i].bits);
  return load(lane);
}
ONEPASS_INLINE void store(Half* to, const Pack<float>& x) {
  float lane[16];
  store(lane, x);
  for (int i = 0; i < 16; ++i) to[i].bits = to_half(lane[i]);
}
#endif

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
