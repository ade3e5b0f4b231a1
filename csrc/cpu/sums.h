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

// The sums over a row: runs folded into double lanes, and these in a fixed order into one number each.
template <class S>
class Sums {
 public:
  ONEPASS_INLINE void fold(const Run<S>& run) {
    fold(run.pg, total_[0]);
    fold(run.pp, total_[1]);
    fold(run.gg, total_[2]);
    fold(run.pu, total_[3]);
    empty_ = false;
  }

  RowSums value() { return {reduce(total_[0]), reduce(total_[1]), reduce(total_[2]), reduce(total_[3])}; }

 private:
  static constexpr int lanes = Pack<S>::lanes;

  ONEPASS_INLINE void fold(const Pack<S>& x, double* total) {
    S lane[lanes];
    store(lane, x);
    for (int i = 0; i < lanes; ++i) total[i] = empty_ ? double(lane[i]) : total[i] + lane[i];
  }

  static ONEPASS_INLINE double reduce(double* total) {
    for (int half = lanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) total[i] += total[i + half];
    return total[0];
  }

  bool empty_ = true;
  double total_[4][lanes];
};

}  // namespace ONEPASS_ISA
}  // namespace onepass
