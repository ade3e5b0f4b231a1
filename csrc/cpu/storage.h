// Parameters and moments in memory, to and from packs: float, double, bfloat16 (with a remainder or without, rounded to
// nearest or stochastically) and float16, whole packs and tails.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../rules/blocks.h"
#include "../rules/number.h"
#include "kernels.h"
#include "simd.h"

namespace onepass {
namespace ONEPASS_ISA {

// One register of a parameter stored as P.
typedef Pack<float, ONEPASS_VECTOR_BYTES> Floats;
typedef VectorOf<uint32_t, ONEPASS_VECTOR_BYTES>::type Bits32;
typedef VectorOf<uint16_t, ONEPASS_VECTOR_BYTES / 2>::type Bits16;
typedef VectorOf<int16_t, ONEPASS_VECTOR_BYTES / 2>::type Signed16;

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

ONEPASS_INLINE Bits32 widen_signed(const void* from) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_maskz_cvtepi16_epi32(all16, _mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  Signed16 numbers;
  std::memcpy(&numbers, from, sizeof numbers);
  return __builtin_convertvector(numbers, Bits32);
#endif
}

// The lower 16 bits, of which the upper ones are 0.
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

// Stores 16 bits of each element of a pack: the lower ones of bits(x) of each register x.
template <int bytes, class Bits>
ONEPASS_INLINE void store_narrow(void* to, const Pack<float, bytes>& x, const Bits& bits) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    narrow(to, bits(x));
#if defined(__AVX2__) && !defined(__AVX512F__)
  } else if constexpr (bytes == 2 * ONEPASS_VECTOR_BYTES) {  // two registers take as many instructions as one
    const __m256i halves = _mm256_packus_epi32((__m256i)bits(x.low), (__m256i)bits(x.high));  // of each 128 bits
    _mm256_storeu_si256((__m256i*)to, _mm256_permute4x64_epi64(halves, 0b11011000));
#endif
  } else {
    store_narrow(to, x.low, bits);
    store_narrow(static_cast<uint16_t*>(to) + x.low.lanes, x.high, bits);
  }
}

ONEPASS_INLINE void load_register(const BFloat16* from, Floats& x) {
  x.v = bits_as<Floats::Vector>(widen(from) << 16);
}

// Round to nearest even; a NaN stays one.
ONEPASS_INLINE void store(BFloat16* to, const Pack<float>& pack) {
  store_narrow(to, pack, [](const Floats& x) {
    const Bits32 bits = bits_as<Bits32>(x.v), rounded = bits + (((bits >> 16) & 1) + 0x7fff);
    return (x.v == x.v ? rounded : (bits | 0x400000)) >> 16;
  });
}

// A moment is in bfloat16 already when it is stored.
ONEPASS_INLINE void load_register(const ShortMoment* from, Floats& x) {
  load_register(reinterpret_cast<const BFloat16*>(from), x);
}
ONEPASS_INLINE void store(ShortMoment* to, const Pack<float>& pack) {
  store_narrow(to, pack, [](const Floats& x) { return bits_as<Bits32>(x.v) >> 16; });
}

// The random bits of the elements of a pack.
template <int bytes = 64>
using Draws = Pack<uint32_t, bytes>;

template <int bytes>
ONEPASS_INLINE void draw_into(Draws<bytes>& x, const DrawKey& key, int64_t index) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    for (int i = 0; i < x.lanes; ++i) x.v[i] = i;
    x.v = draw(key, x.v + uint32_t(index), uint32_t(index >> 32));
    if (uint32_t(index) > uint32_t(-x.lanes)) [[unlikely]]  // the lower half of the index wraps in the register
      for (int i = 0; i < x.lanes; ++i) x.v[i] = draw_at(key, index + i);
  } else {
    draw_into(x.low, key, index);
    draw_into(x.high, key, index + x.low.lanes);
  }
}

// Numbers of bfloat16: x with `up` added to its bits, without those below. A NaN is a quiet one, since it was computed.
ONEPASS_INLINE Floats rounded_up(const Floats& x, const Bits32& up) {
  const Bits32 number = bits_as<Bits32>(x.v == x.v);
  return bits_as<Floats::Vector>((bits_as<Bits32>(x.v) + (up & number)) & 0xffff0000);
}
template <int bytes>
ONEPASS_INLINE Pack<float, bytes> rounded_to_nearest(const Pack<float, bytes>& x) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES)
    return rounded_up(x, ((bits_as<Bits32>(x.v) >> 16) & 1) + 0x7fff);
  else
    return {rounded_to_nearest(x.low), rounded_to_nearest(x.high)};
}
// By the lower halves of the random bits, or by the upper ones.
template <bool lower, int bytes>
ONEPASS_INLINE Pack<float, bytes> rounded_by(const Draws<bytes>& drawn, const Pack<float, bytes>& x) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES)
    return rounded_up(x, lower ? drawn.v & 0xffff : drawn.v >> 16);
  else
    return {rounded_by<lower>(drawn.low, x.low), rounded_by<lower>(drawn.high, x.high)};
}

// 8 bits to 32 and back.
ONEPASS_INLINE Bits32 widen_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
  return (Bits32)_mm512_maskz_cvtepu8_epi32(all16, _mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (Bits32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
  typename VectorOf<uint8_t, ONEPASS_VECTOR_BYTES / 4>::type bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, Bits32);
#endif
}
// The lower 8 bits, of which the upper ones are 0.
template <int bytes>
ONEPASS_INLINE void narrow_to_bytes(uint8_t* to, const Pack<uint32_t, bytes>& x) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_maskz_cvtepi32_epi8(all16, (__m512i)x.v));
#elif defined(__AVX2__)
  const __m256i halves = _mm256_packus_epi32((__m256i)x.low.v, (__m256i)x.high.v);  // of each 128 bits
  const __m256i all = _mm256_permute4x64_epi64(halves, 0b11011000);
  _mm_storeu_si128((__m128i*)to, _mm_packus_epi16(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
#else
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    const auto low = __builtin_convertvector(x.v, typename VectorOf<uint8_t, ONEPASS_VECTOR_BYTES / 4>::type);
    std::memcpy(to, &low, sizeof low);
  } else {
    narrow_to_bytes(to, x.low);
    narrow_to_bytes(to + x.low.lanes, x.high);
  }
#endif
}

// Codes of moments of 8 bits in one block.
template <bool is_signed>
struct CodesAddress {
  uint8_t* code;
  uint32_t scale;

  ONEPASS_INLINE CodesAddress operator+(int64_t i) const { return {code + i, scale}; }
};
template <bool is_signed>
ONEPASS_INLINE void load_register(CodesAddress<is_signed> from, Floats& x) {
  x.v = bits_as<Floats::Vector>(Codes<is_signed>::number_of(widen_bytes(from.code), from.scale));
}

// The numbers as which moments are stored under a scale. drawn: for the second one, whose upper 20 bits round it.
template <bool is_signed, int bytes>
ONEPASS_INLINE Pack<float, bytes> rounded_to_codes(const Pack<float, bytes>& x, const Draws<bytes>& drawn,
                                                   uint32_t scale) {
  typedef Codes<is_signed> C;
  if constexpr (bytes == ONEPASS_VECTOR_BYTES)
    return bits_as<Floats::Vector>(
        C::stored(bits_as<Bits32>(x.v), is_signed ? Bits32{} : drawn.v >> (32 - C::dropped_bits), scale));
  else
    return {rounded_to_codes<is_signed>(x.low, drawn.low, scale),
            rounded_to_codes<is_signed>(x.high, drawn.high, scale)};
}
// Their codes.
template <bool is_signed, int bytes>
ONEPASS_INLINE Draws<bytes> codes_of(const Pack<float, bytes>& x, uint32_t scale) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES)
    return Codes<is_signed>::code_of(bits_as<Bits32>(x.v), scale);
  else
    return {codes_of<is_signed>(x.low, scale), codes_of<is_signed>(x.high, scale)};
}

// The bits of the largest numbers in each lane, sign aside.
template <int bytes>
ONEPASS_INLINE void keep_larger(Draws<bytes>& largest, const Pack<float, bytes>& x) {
  if constexpr (bytes == ONEPASS_VECTOR_BYTES) {
    const Bits32 magnitude = bits_as<Bits32>(x.v) & 0x7fffffff;
    largest.v = largest.v > magnitude ? largest.v : magnitude;
  } else {
    keep_larger(largest.low, x.low);
    keep_larger(largest.high, x.high);
  }
}
ONEPASS_INLINE uint32_t largest_of(const Draws<>& lanes) {
  uint32_t each[Draws<>::lanes], largest = 0;
  std::memcpy(each, &lanes, sizeof each);
  for (uint32_t x : each) largest = x > largest ? x : largest;
  return largest;
}

// The address of weights that are stored as P.
template <class P>
struct AddressOf {
  typedef P* type;
};
struct MasterAddress {
  BFloat16* p;
  int16_t* remainder;

  ONEPASS_INLINE MasterAddress operator+(int64_t i) const { return {p + i, remainder + i}; }
};
template <>
struct AddressOf<Master> {
  typedef MasterAddress type;
};
template <>
struct AddressOf<Stochastic> {
  typedef BFloat16* type;
};

// The float32 weight; the parameter alone if only the remainder makes a NaN of it.
ONEPASS_INLINE void load_register(MasterAddress from, Floats& x) {
  const Bits32 high = widen(from.p) << 16;
  const Floats::Vector joined = bits_as<Floats::Vector>(high + widen_signed(from.remainder));
  x.v = joined == joined ? joined : bits_as<Floats::Vector>(high);
}
// Round to nearest, ties away from zero. A NaN stays one: it was computed, or loaded from a parameter alone, so that it
// does not consist of lower bits.
ONEPASS_INLINE void store(MasterAddress to, const Pack<float>& pack) {
  store_narrow(to.p, pack, [](const Floats& x) {
    const Bits32 number = bits_as<Bits32>(x.v == x.v);
    return (bits_as<Bits32>(x.v) + (number & 0x8000)) >> 16;
  });
  store_narrow(to.remainder, pack, [](const Floats& x) {
    const Bits32 number = bits_as<Bits32>(x.v == x.v);
    return bits_as<Bits32>(x.v) & number & 0xffff;
  });
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
  if (magnitude >= 0x7c00)
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0);
  else if (magnitude >= 0x400)
    bits = (magnitude << 13) + (112u << 23);
  else
    bits = bits_as<uint32_t>(float(magnitude) * 0x1p-24f);  // subnormal
  return bits_as<float>(bits | uint32_t(h & 0x8000) << 16);
}

ONEPASS_INLINE uint16_t to_half(float x) {
  uint32_t bits = bits_as<uint32_t>(x);
  uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00 | uint16_t((bits >> 13) & 0x3ff);
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or more
  if (bits < 0x38800000)                         // subnormal: adding 1/2 leaves the rounded integer in the low bits
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

template <class Address, class S, int bytes>
ONEPASS_INLINE void load_into(Address from, Pack<S, bytes>& x) {
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
ONEPASS_INLINE Pack<float> load(MasterAddress from) {
  Pack<float> x;
  load_into(from, x);
  return x;
}
template <bool is_signed>
ONEPASS_INLINE Pack<float> load(CodesAddress<is_signed> from) {
  Pack<float> x;
  load_into(from, x);
  return x;
}
template <bool is_signed>
ONEPASS_INLINE void store(CodesAddress<is_signed> to, const Pack<float>& x) {
  narrow_to_bytes(to.code, codes_of<is_signed>(x, to.scale));
}
template <class Address, class S, int bytes>
ONEPASS_INLINE void store(Address to, const Pack<S, bytes>& x) {
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
ONEPASS_INLINE void load_unordered(const P* from, Pack<typename WorkOf<P>::type>& a,
                                   Pack<typename WorkOf<P>::type>& b) {
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

ONEPASS_INLINE void load_unordered(const BFloat16* from, Pack<float>& a, Pack<float>& b) {
  split_pairs(from, a, b);
}

#if defined(__AVX512BW__)
template <class P>
ONEPASS_INLINE __m512i load_masked(const P* from, int n) {
  const uint32_t some = (1u << n) - 1;
  if constexpr (sizeof(P) == 8)
    return _mm512_maskz_loadu_epi64(__mmask8(some), from);
  else if constexpr (sizeof(P) == 1)
    return _mm512_maskz_loadu_epi8(some, from);
  else if constexpr (sizeof(P) == 4)
    return _mm512_maskz_loadu_epi32(__mmask16(some), from);
  else
    return _mm512_maskz_loadu_epi16(some, from);
}
template <class P>
ONEPASS_INLINE void store_masked(P* to, __m512i x, int n) {
  const uint32_t some = (1u << n) - 1;
  if constexpr (sizeof(P) == 8)
    _mm512_mask_storeu_epi64(to, __mmask8(some), x);
  else if constexpr (sizeof(P) == 1)
    _mm512_mask_storeu_epi8(to, some, x);
  else if constexpr (sizeof(P) == 4)
    _mm512_mask_storeu_epi32(to, __mmask16(some), x);
  else
    _mm512_mask_storeu_epi16(to, some, x);
}
#endif

// 64 bytes of stack, of which P fills the first.
template <class P>
struct Padded {
  P x[64 / sizeof(P)];

  Padded() = default;
  ONEPASS_INLINE Padded(const P* from, int n) {
#if defined(__AVX512BW__)
    _mm512_storeu_si512(x, load_masked(from, n));
#else
    std::memset(x, 0, sizeof x);
    std::memcpy(x, from, n * sizeof(P));
#endif
  }
  ONEPASS_INLINE void write(P* to, int n) const {
#if defined(__AVX512BW__)
    store_masked(to, _mm512_loadu_si512(x), n);
#else
    std::memcpy(to, x, n * sizeof(P));
#endif
  }
};

// The first n lanes; the others read as 0 and are not written.
template <class P>
ONEPASS_INLINE auto load(const P* from, int n) {
  const Padded<P> full(from, n);
  return load(static_cast<const P*>(full.x));
}
ONEPASS_INLINE Pack<float> load(MasterAddress from, int n) {
  Padded<BFloat16> p(from.p, n);
  Padded<int16_t> remainder(from.remainder, n);
  return load(MasterAddress{p.x, remainder.x});
}
template <bool is_signed>
ONEPASS_INLINE Pack<float> load(CodesAddress<is_signed> from, int n) {
  Padded<uint8_t> code(from.code, n);
  return load(CodesAddress<is_signed>{code.x, from.scale});
}
template <bool is_signed>
ONEPASS_INLINE void store(CodesAddress<is_signed> to, const Pack<float>& x, int n) {
  Padded<uint8_t> code;
  store(CodesAddress<is_signed>{code.x, to.scale}, x);
  code.write(to.code, n);
}
template <class P>
ONEPASS_INLINE void store(P* to, const Pack<typename WorkOf<P>::type>& x, int n) {
  Padded<P> full;
  store(full.x, x);
  full.write(to, n);
}
ONEPASS_INLINE void store(MasterAddress to, const Pack<float>& x, int n) {
  Padded<BFloat16> p;
  Padded<int16_t> remainder;
  store(MasterAddress{p.x, remainder.x}, x);
  p.write(to.p, n);
  remainder.write(to.remainder, n);
}

template <class P>
ONEPASS_INLINE typename AddressOf<P>::type address_of(const Tile& t, int64_t at) {
  auto* p = static_cast<typename ElementOf<P>::type*>(t.p) + at;
  if constexpr (std::is_same_v<P, Master>)
    return {p, t.remainder + at};
  else
    return p;
}

}  // namespace ONEPASS_ISA
}  // namespace onepass
