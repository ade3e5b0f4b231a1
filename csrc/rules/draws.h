// Random bits of stochastic rounding: a stateless hash of the seed, the step, the tensor and the element's place in it.
// The same bits come of every layout, thread, device and shard, and a resumed run draws what the unbroken one would.
// draws.py says the same.
//
// The mixer is Wellons' "triple32" (github.com/skeeto/hash-prospector), a permutation of 32 bits.
#pragma once

#include <cstdint>

#include "config.h"

namespace onepass {

// The mixer of x, with `second` joined in after the first of its three rounds. U is uint32_t or a vector of them.
template <class U, class V>
ONEPASS_HD U mixed(U x, V second) {
  x = x ^ (x >> 17);
  x = x * 0xed5ad4bbu;
  x = x ^ (x >> 11) ^ second;
  x = x * 0xac4c1b51u;
  x = x ^ (x >> 15);
  x = x * 0x31848babu;
  return x ^ (x >> 14);
}

// 64 bits, into which words are absorbed one after the other.
struct DrawKey {
  uint32_t a = 0x243f6a88, b = 0x85a308d3;

  ONEPASS_HD DrawKey with(uint32_t word) const {
    const uint32_t mixed_a = mixed(a ^ word, 0u);
    return {mixed_a, mixed(b ^ mixed_a, 0u)};
  }
};

// The key of a step; `step` is the count of the parameter, this step included. That of a tensor at it:
// key.with(number).
ONEPASS_HD DrawKey draw_key(uint64_t seed, uint32_t step) {
  return DrawKey{}.with(uint32_t(seed)).with(uint32_t(seed >> 32)).with(step);
}

// The 32 bits of an element from the halves of its index in the tensor: the lower 16 round the parameter, the upper 16
// its second moment, or the upper 20 where that has 8 bits. Two keys that differ in `a` alone would give the same bits
// in another order, hence `b`.
template <class U>
ONEPASS_HD U draw(const DrawKey& key, U low, uint32_t high) {
  return mixed(low ^ key.a, key.b ^ high * 0x9e3779b1u);
}

ONEPASS_HD uint32_t draw_at(const DrawKey& key, int64_t index) {
  return draw(key, uint32_t(index), uint32_t(uint64_t(index) >> 32));
}

}  // namespace onepass
