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

template <class P>
struct WorkOf {
  typedef float type;
};
template <>
struct WorkOf<double> {
  typedef double type;
};

}  // namespace onepass
