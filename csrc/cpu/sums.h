// The sums over a row that the projection needs: in float lanes over short runs, in double beyond, in one fixed order.
#pragma once

#include "../rules/projection.h"
#include "storage.h"

namespace onepass {
namespace ONEPASS_ISA {

// Sums of products over a run of packs, in the lanes of four registers.
template <class S>
struct Run {
  // 64 terms a lane keep the error of a sum of float32 products near that of one product.
  static constexpr int64_t elements = 64 * Pack<S>::lanes;
  Pack<S> pg = Pack<S>(0), pp = Pack<S>(0), gg = Pack<S>(0), pu = Pack<S>(0);

  ONEPASS_INLINE void add(Pack<S> p, Pack<S> g) {
    pg = pg + p * g;
    pp = pp + p * p;
    gg = gg + g * g;
  }
  ONEPASS_INLINE void add(Pack<S> p, Pack<S> g, Pack<S> u) {
    add(p, g);
    pu = pu + p * u;
  }
};

typedef VectorOf<float, 32>::type Float8;
typedef VectorOf<double, 64>::type Double8;

// One sum over a row: runs folded into double lanes, and these in a fixed order into one number.
class Total {
 public:
  ONEPASS_INLINE void fold(const Pack<float>& run) {
    Float8 half[2];
    std::memcpy(half, &run, sizeof half);
    low_ += __builtin_convertvector(half[0], Double8);
    high_ += __builtin_convertvector(half[1], Double8);
  }
  ONEPASS_INLINE void fold(const Pack<double>& run) {
    Double8 all;
    std::memcpy(&all, &run, sizeof all);
    low_ += all;
  }

  // In double from the start, where the square of no float is too large or too small.
  ONEPASS_INLINE void add_square(const Pack<float>& x) {
    Float8 half[2];
    std::memcpy(half, &x, sizeof half);
    const Double8 a = __builtin_convertvector(half[0], Double8), b = __builtin_convertvector(half[1], Double8);
    low_ += a * a;
    high_ += b * b;
  }
  ONEPASS_INLINE void add_square(const Pack<double>& x) {
    Double8 all;
    std::memcpy(&all, &x, sizeof all);
    low_ += all * all;
  }

  ONEPASS_INLINE double value() const {
    const Double8 x = low_ + high_;
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
  }

 private:
  Double8 low_ = {}, high_ = {};
};

template <class S>
class Sums {
 public:
  ONEPASS_INLINE void fold(const Run<S>& run) {
    pg_.fold(run.pg);
    pp_.fold(run.pp);
    gg_.fold(run.gg);
    pu_.fold(run.pu);
  }
  ONEPASS_INLINE RowSums value() const { return {pg_.value(), pp_.value(), gg_.value(), pu_.value()}; }

 private:
  Total pg_, pp_, gg_, pu_;
};

}  // namespace ONEPASS_ISA
}  // namespace onepass
