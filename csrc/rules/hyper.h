// The hyper-parameters of a param group, and the scalars that the rules make of them, computed once in double.
#pragma once

#include "adam.h"
#include "draws.h"
#include "projection.h"
#include "sgd.h"

#include <tuple>

namespace onepass {

// Every rule, in the order of RuleId.
template <class S>
using Rules = std::tuple<Adam<S>, Momentum<S>, Sgd<S>>;
static_assert(std::tuple_size_v<Rules<float>> == rule_count);

// The fields of Precision in precision.py: how a group's parameters and moments are stored.
struct Precision {
  bool master_weights = false;
  int moment_bits = 32;
  bool stochastic_rounding = false;

  bool operator==(const Precision&) const = default;
};

// The fields of Hyper in hyperparams.py, which documents them, under the same names.
struct Hyper {
  double lr = 0, grad_scale = 1;
  double beta1 = 0, beta2 = 0;
  double momentum = 0, dampening = 0;
  double eps = 0;
  double l2 = 0, decay = 0, metric_decay = 0;
  double delta = 0, wd_ratio = 1;
  bool nesterov = false, proximal = false, project_momentum = false, speculate = true;
  int fixed_gate = no_fixed_gate;
  Precision precision;
  uint64_t seed = 0;
};

// A hyper-parameter that is read at every step from the device, if `at` is not null.
struct DeviceNumber {
  double value = 0;
  const void* at = nullptr;
  bool wide = false;  // a double, not a float
};

enum class Decay : int { direct, l2, metric };  // which field of Hyper the weight decay enters

// The hyper-parameters of a group whose steps the device counts, before hyper_of (hyperparams.py) has made Hyper's
// fields of them.
struct DeviceHyper {
  bool on_device = false;   // whether the group is one
  bool capturable = false;  // whether its steps may be captured into a graph
  Hyper fixed;
  DeviceNumber lr, weight_decay, beta1, beta2, momentum, initial_lr;
  Decay decay = Decay::direct;
  bool decouple_lr = false, over_one_minus_momentum = false;
};

// What the gradients of a step are multiplied by besides their group's sign, and whether it is not to be taken:
// scaling.py.
struct Scaling {
  DeviceNumber clip{1}, grad_scale{1}, found_inf{0};
};

// Every scalar of one tensor at one step.
struct Scalars {
  Adam<double> adam;
  Momentum<double> momentum;  // of Sgd too
  Projection projection;
  bool project_momentum;
  DrawKey draw_key;
};

// t: the tensor's step count, this step included. first: its buffer was made for this step (`lazy_buffer` rules).
ONEPASS_HD Scalars scalars_of(const Hyper& h, RuleId rule, double t, bool first) {
  Scalars out{};
  double s = h.lr;
  if (rule != RuleId::adam) {
    out.momentum = {h.grad_scale, h.l2, h.momentum, 1 - (first ? 0.0 : h.dampening), h.nesterov, h.l2 != 0};
  } else {
    s = h.lr / (1 - std::pow(h.beta1, t));
    out.adam = {.grad_scale = h.grad_scale,
                .l2 = h.l2,
                .beta1 = h.beta1,
                .one_minus_beta1 = 1 - h.beta1,
                .beta2 = h.beta2,
                .one_minus_beta2 = 1 - h.beta2,
                .inv_sqrt_bc2 = 1 / std::sqrt(1 - std::pow(h.beta2, t)),
                .eps = h.eps,
                .metric_decay = h.metric_decay,
                .metric_decay_over_s = h.metric_decay == 0 ? 0 : h.metric_decay / s,
                .nesterov = h.nesterov,
                .has_l2 = h.l2 != 0,
                .has_metric_decay = h.metric_decay != 0,
                .has_eps = h.eps != 0};
  }
  out.projection = {s, h.decay, h.wd_ratio, h.delta, h.eps, h.proximal, h.fixed_gate};
  out.project_momentum = h.project_momentum && !h.nesterov;
  out.draw_key = draw_key(h.seed, uint32_t(t));
  return out;
}

template <class S>
ONEPASS_HD Adam<S> narrow(const Adam<double>& a) {
  return {.grad_scale = S(a.grad_scale),
          .l2 = S(a.l2),
          .beta1 = S(a.beta1),
          .one_minus_beta1 = S(a.one_minus_beta1),
          .beta2 = S(a.beta2),
          .one_minus_beta2 = S(a.one_minus_beta2),
          .inv_sqrt_bc2 = S(a.inv_sqrt_bc2),
          .eps = S(a.eps),
          .metric_decay = S(a.metric_decay),
          .metric_decay_over_s = S(a.metric_decay_over_s),
          .nesterov = a.nesterov,
          .has_l2 = a.has_l2,
          .has_metric_decay = a.has_metric_decay,
          .has_eps = S(a.eps) != S(0)};
}

template <class S>
ONEPASS_HD Momentum<S> narrow(const Momentum<double>& a) {
  return {.grad_scale = S(a.grad_scale),
          .l2 = S(a.l2),
          .momentum = S(a.momentum),
          .one_minus_dampening = S(a.one_minus_dampening),
          .nesterov = a.nesterov,
          .has_l2 = a.has_l2};
}

// A rule with its scalars in its own dtype.
template <class Rule>
ONEPASS_HD Rule rule_of(const Scalars& s) {
  typedef typename Rule::Number S;
  if constexpr (Rule::id == RuleId::adam)
    return narrow<S>(s.adam);
  else if constexpr (Rule::id == RuleId::momentum)
    return narrow<S>(s.momentum);
  else
    return {S(s.momentum.grad_scale), S(s.momentum.l2), s.momentum.has_l2};
}

// The factor of the gradient, in double.
template <class Rule>
ONEPASS_HD double grad_scale_of(const Scalars& s) {
  return Rule::id == RuleId::adam ? s.adam.grad_scale : s.momentum.grad_scale;
}

}  // namespace onepass
