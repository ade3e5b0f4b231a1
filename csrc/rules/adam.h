// Adam, AdamW, AdamProx, AdamProxL2 and AdamP up to the direction u of the update, for one element.
//
//     g = grad_scale*g (+ l2*p)      m = b1*m + (1-b1)*g      v = b2*v + (1-b2)*g^2
//     D = sqrt(v)/sqrt(bc2) + eps    u = m/D                  nesterov: u = (b1*m + (1-b1)*g)/D
//     AdamProxL2: u = (m + (q/s)*p)/(D + q) with q = wd*lr, which makes p - s*u the prox step (p - s*m/D)/(1 + q/D)
//
// R is a number or a pack of numbers, S the number. Every operation rounds once, and compilers may not contract, so
// that all backends return the bits of reference.py.
#pragma once

#include <cmath>
#include <limits>

#include "gradient.h"

namespace onepass {

template <class S>
ONEPASS_HD S where_zero(S x, S instead) {
  return x == S(0) ? instead : x;
}

template <class S>
struct Adam {
  typedef S Number;
  static constexpr RuleId id = RuleId::adam;
  static constexpr int moments = 2;

  S grad_scale, l2;
  S beta1, one_minus_beta1;
  S beta2, one_minus_beta2;
  S inv_sqrt_bc2, eps;
  S metric_decay, metric_decay_over_s;
  bool nesterov;
  // The same for every element, so tested as flags: a float compare in the loop costs three instructions.
  bool has_l2, has_metric_decay, has_eps;

  template <class R>
  ONEPASS_HD R gradient(R p, R g) const {
    return gradient_of(p, g, grad_scale, l2, has_l2);
  }

  template <class R>
  ONEPASS_HD void advance(R g, R* moment) const {
    R &m = moment[0], &v = moment[1];
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
  }

  // Whether `direction` needs the gradient beside the moments.
  ONEPASS_HD bool reads_gradient() const { return nesterov; }

  template <class R>
  ONEPASS_HD R direction(R p, R g, const R* moment) const {
    using std::sqrt;
    R m = moment[0], v = moment[1];
    R D = sqrt(v) * inv_sqrt_bc2 + eps;
    // D is 0 where eps is 0 and all gradients were 0: dividing by infinity leaves p alone and keeps a NaN in m.
    if (!has_eps) D = where_zero(D, R(std::numeric_limits<S>::infinity()));
    if (nesterov) m = beta1 * m + one_minus_beta1 * g;
    if (has_metric_decay) return (m + metric_decay_over_s * p) / (D + metric_decay);
    return m / D;
  }
};

}  // namespace onepass
