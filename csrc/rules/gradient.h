// The gradient that a rule uses, for one element. R and S as in adam.h.
#pragma once

#include "config.h"

namespace onepass {

// g = grad_scale*g (+ l2*p). has_l2: whether l2 is not 0, tested as a flag.
template <class R, class S>
ONEPASS_HD R gradient_of(R p, R g, S grad_scale, S l2, bool has_l2) {
  g = grad_scale * g;
  return has_l2 ? g + l2 * p : g;
}

}  // namespace onepass
