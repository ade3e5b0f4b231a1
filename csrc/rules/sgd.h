// SGD and SGDP up to the direction u of the update, for one element.
//
//     g = grad_scale*g (+ l2*p)      b = momentum*b + (1-dampening)*g      u = b, nesterov: u = g + momentum*b
//
// Sgd is torch.optim.SGD while momentum is 0: no buffer, and u = g. R and S as in adam.h.
#pragma once

#include "gradient.h"

namespace onepass {

template <class S>
struct Momentum {
  typedef S Number;
  static constexpr RuleId id = RuleId::momentum;
  static constexpr int moments = 1;

  S grad_scale, l2;
  S momentum, one_minus_dampening;
  bool nesterov, has_l2;

  template <class R>
  ONEPASS_HD R gradient(R p, R g) const {
    return gradient_of(p, g, grad_scale, l2, has_l2);
  }

  template <class R>
  ONEPASS_HD void advance(R g, R* moment) const {
    moment[0] = momentum * moment[0] + one_minus_dampening * g;
  }

  ONEPASS_HD bool reads_gradient() const { return nesterov; }

  template <class R>
  ONEPASS_HD R direction(R, R g, const R* moment) const {
    return nesterov ? g + momentum * moment[0] : moment[0];
  }
};

template <class S>
struct Sgd {
  typedef S Number;
  static constexpr RuleId id = RuleId::sgd;
  static constexpr int moments = 0;

  S grad_scale, l2;
  bool has_l2;

  template <class R>
  ONEPASS_HD R gradient(R p, R g) const {
    return gradient_of(p, g, grad_scale, l2, has_l2);
  }

  template <class R>
  ONEPASS_HD void advance(R, R*) const {}

  ONEPASS_HD bool reads_gradient() const { return true; }

  template <class R>
  ONEPASS_HD R direction(R, R g, const R*) const {
    return g;
  }
};

}  // namespace onepass
