// Moments of 8 bits: floats relative to a scale that a block of 256 elements of a row shares. blocks.py says what they
// are, in the same terms.
#pragma once

#include <cstdint>

#include "config.h"

namespace onepass {

constexpr int block_length = 256;
constexpr int64_t smallest_tensor_of_blocks = 4096, smallest_vector_of_blocks = 65536, shortest_row_of_blocks = 64;

ONEPASS_HD int64_t blocks_of(int64_t length) {
  return (length + block_length - 1) / block_length;
}

// Codes of the first moment (is_signed: a sign, 4 bits of exponent, 3 of fraction) or of the second (5 bits of
// exponent, 3 of fraction). U is uint32_t or a vector of them: the bits of float32 numbers, or codes.
template <bool is_signed>
struct Codes {
  static constexpr int fraction_bits = 23, dropped_bits = 20;
  static constexpr uint32_t unit = 1u << dropped_bits, nearest = unit / 2;
  static constexpr uint32_t span = is_signed ? 15 : 31;  // exponents below that of the largest number
  static constexpr uint32_t most_added = is_signed ? nearest : unit - 1;
  static constexpr uint32_t nan_scale = 255, magnitude_mask = 0x7fffffff, sign_mask = ~magnitude_mask;

  // The scale of a block from the bits of its largest number, sign aside: with it, that can be rounded up.
  ONEPASS_HD static uint32_t scale_of(uint32_t largest) {
    const uint32_t exponent = (largest + most_added) >> fraction_bits;
    return exponent >= 255 ? nan_scale : exponent <= span ? 1 : exponent - span;
  }

  // A number as it is stored. up: what is added to a second moment, random bits below `unit`.
  template <class U>
  ONEPASS_HD static U stored(U number, U up, uint32_t scale) {
    const uint32_t smallest = (scale << fraction_bits) + unit;
    if (scale == nan_scale) return U{} + smallest;
    if constexpr (is_signed) {
      const U sum = (number & magnitude_mask) + nearest, rounded = (sum & (0 - unit)) | (number & sign_mask);
      return sum < smallest ? U{} : rounded;
    } else {
      const U sum = number + up, at_least = sum < smallest ? U{} + smallest : sum;
      return number == 0 ? U{} : at_least & (0 - unit);
    }
  }

  // The code of a number that is stored under this scale.
  template <class U>
  ONEPASS_HD static U code_of(U stored, uint32_t scale) {
    const U magnitude = stored & magnitude_mask, digits = (magnitude - (scale << fraction_bits)) >> dropped_bits;
    return magnitude == 0 ? U{} : digits | (stored & sign_mask) >> 24;
  }

  // The number of a code.
  template <class U>
  ONEPASS_HD static U number_of(U code, uint32_t scale) {
    const U sign = is_signed ? code & 0x80 : U{}, digits = code - sign;
    const U magnitude = (digits << dropped_bits) + (scale << fraction_bits);
    return (digits == 0 ? U{} : magnitude) | sign << 24;
  }
};

}  // namespace onepass
