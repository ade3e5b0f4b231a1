// AdamP's projection: the gate of a tensor and, row by row, the affine step p' = p - (d*p + k*u) to which every rule
// comes down ("AdamP", arXiv 2006.08217, Alg. 1-2; decay="proximal" after arXiv 2202.00089, Alg. 2).
//
//     decoupled  p' = (1 - q)*p - s*(u - c*p):        d = q - s*c          k = s
//     proximal   p' = (p - s*(u - c*p))/(1 + q):      d = (q - s*c)/(1+q)  k = s/(1+q)
//
// q is the decay (times wd_ratio where projected), c = <p,u>/(|p|+eps)^2 of the row, 0 where not projected.
// The scalars of a row are computed in double and narrowed once.
#pragma once

#include <cmath>
#include <limits>

#include "config.h"

namespace onepass {

enum class Gate : int { none = 0, channel = 1, layer = 2 };

// Sums over a row, or over a piece of one: <p,g> <p,p> <g,g> <p,u>.
struct RowSums {
  double pg = 0, pp = 0, gg = 0, pu = 0;

  ONEPASS_HD void add(const RowSums& o) {
    pg += o.pg;
    pp += o.pp;
    gg += o.gg;
    pu += o.pu;
  }
};

// The affine step of one row.
struct Affine {
  double d = 0, k = 0;

  ONEPASS_HD bool operator==(const Affine& o) const { return d == o.d && k == o.k; }
};

// No gate is fixed: the cosine decides.
constexpr int no_fixed_gate = -1;

// What projection and decay need of a tensor at one step.
struct Projection {
  double s, decay, wd_ratio, delta, eps;
  bool proximal;
  int fixed_gate;  // a Gate that the group sets, or no_fixed_gate

  // cos(p, g)^2, whose root is taken of the largest only; a row of zeros has cosine 0, a row with a NaN has NaN.
  ONEPASS_HD double cosine_squared(const RowSums& r) const {
    return r.pg * r.pg / or_infinity(clamp_below(r.pp, eps * eps) * clamp_below(r.gg, eps * eps));
  }

  ONEPASS_HD double coefficient(const RowSums& r) const {
    double norm = std::sqrt(r.pp) + eps;
    return r.pu / or_infinity(norm * norm);
  }

  ONEPASS_HD bool passes(double max_cosine, double row_length) const {
    return max_cosine < delta / std::sqrt(row_length);  // false for NaN
  }

  ONEPASS_HD Affine affine(Gate gate, double c) const {
    double q = gate == Gate::none ? decay : decay * wd_ratio;
    double d = q - (gate == Gate::none ? 0 : s * c);
    if (!proximal) return {d, s};
    return {d / (1 + q), s / (1 + q)};
  }

  // 0/0 := 0, and a NaN above stays one.
  ONEPASS_HD static double or_infinity(double x) { return x == 0 ? std::numeric_limits<double>::infinity() : x; }

  // max(x, low) that keeps a NaN in x.
  ONEPASS_HD static double clamp_below(double x, double low) { return x < low ? low : x; }
};

// The larger of two, or NaN if either is.
ONEPASS_HD double max_or_nan(double a, double b) {
  return a > b || a != a ? a : b;
}

// Whether p can be recovered from p' = p - (d*p + k*u) to full accuracy: p' must keep half of p at least, and the
// projection s*c of the update must not exceed p itself, or the rounding of p' would grow by as much when p' is
// corrected to another gate. False for NaN and infinity.
ONEPASS_HD bool recoverable(const Affine& a, double sc) {
  return std::fabs(1 - a.d) >= 0.5 && std::fabs(sc) <= 1;
}

// The affine step that leads from p' = `from`(p) to `to`(p): p'' = r*p' + (r*k0 - k1)*u with r = (1-d1)/(1-d0).
ONEPASS_HD Affine correction(const Affine& from, const Affine& to) {
  double r = (1 - to.d) / (1 - from.d);
  return {(to.d - from.d) / (1 - from.d), to.k - r * from.k};
}

// One element. Without decay p is not touched by it, so that an infinite weight stays infinite.
template <class R, class S>
ONEPASS_HD R apply(R p, R u, S d, S k) {
  return d == S(0) ? p - k * u : p - (d * p + k * u);
}

// The predictor: a fixed gate, or else a counter from 0 to 3 for each tensor. A gate of `layer` is never predicted: a
// tensor that is not scale-invariant passes that view by chance now and then, and predicting it again would cost a
// second miss.
ONEPASS_HD Gate predicted(const Projection& pr, unsigned char counter) {
  if (pr.fixed_gate != no_fixed_gate) return Gate(pr.fixed_gate);
  return counter >= 2 ? Gate::channel : Gate::none;
}
ONEPASS_HD unsigned char next_counter(unsigned char counter, Gate verdict) {
  if (verdict == Gate::channel) return counter < 3 ? counter + 1 : 3;
  return counter > 0 ? counter - 1 : 0;
}

}  // namespace onepass
