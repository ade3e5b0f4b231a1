// How parameters are stored, and the number they are worked on as.
#pragma once

#include <cstdint>

namespace onepass {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// A float32 weight in two arrays: the nearest BFloat16, which is the parameter, and an int16 remainder, as masters.py
// says.
struct Master {};

// A BFloat16 parameter that is rounded stochastically.
struct Stochastic {};

// A moment in BFloat16. It is rounded before u is made of it, so that a correction finds the same u: the first to
// nearest, the second stochastically, since its steps are some 1/1000 of it, and to nearest it would stall.
struct ShortMoment {
  uint16_t bits;
};

// A moment of 8 bits, a code under the scale of its block (blocks.h). It is rounded like a ShortMoment.
enum class ByteMoment : uint8_t {};

template <class P>
struct WorkOf {
  typedef float type;
};
template <>
struct WorkOf<double> {
  typedef double type;
};

// The type of an element of a parameter, remainder aside, and of its gradient.
template <class P>
struct ElementOf {
  typedef P type;
};
template <>
struct ElementOf<Master> {
  typedef BFloat16 type;
};
template <>
struct ElementOf<Stochastic> {
  typedef BFloat16 type;
};

}  // namespace onepass
