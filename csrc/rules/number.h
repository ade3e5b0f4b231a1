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

}  // namespace onepass
