// Hyper-parameters and step counts that are read from the device at every step, so that a captured graph replays with
// the values of the day.
#pragma once

#include "memory.cuh"
#include "plan.cuh"

namespace onepass::cuda {

__device__ inline double read(const LiveNumber& n) {
  if (!n.at) return n.value;
  if (n.wide) return load(static_cast<const double*>(n.at), of_plan);
  return load(static_cast<const float*>(n.at), of_plan);
}

// What hyper.py's hyper_of makes of a group.
__device__ inline Hyper hyper_now(const LiveHyper& live) {
  Hyper h = live.fixed;
  h.lr = read(live.lr);
  h.beta1 = read(live.beta1);
  h.beta2 = read(live.beta2);
  h.momentum = read(live.momentum);
  const double wd = read(live.weight_decay);
  const double decay_lr = live.decouple_lr ? h.lr / read(live.initial_lr) : h.lr;
  if (live.decay == Decay::l2) {
    h.l2 = wd;
  } else if (live.decay == Decay::metric) {
    h.metric_decay = decay_lr * wd;
  } else {
    h.decay = decay_lr * wd;
    if (live.over_one_minus_momentum && wd != 0) h.decay /= 1 - h.momentum;
  }
  return h;
}

// Whether the step is not to be taken.
__device__ __forceinline__ bool skipped(const Scaling& scaling) {
  return read(scaling.found_inf) != 0;
}

// Counts the step and works out the scalars of one tensor whose steps the device counts.
template <class Rule>
__device__ void prepare(const Frame& f, int tensor) {
  const DeviceTensor& t = f.tensors[tensor];
  Hyper h = hyper_now(f.live[t.live]);
  h.grad_scale *= read(f.scaling.clip) / read(f.scaling.grad_scale);
  if (t.negated) h.grad_scale = -h.grad_scale;
  float count = 0;
  if (t.step) store(t.step, count = load(t.step, of_plan) + 1, of_plan);
  const bool first = f.lazy_buffer && t.first && load(f.fresh + tensor, of_plan);
  if (first) store(f.fresh + tensor, false, of_plan);
  const Scalars scalars = scalars_of(h, f.sgd, count, first);
  store(reinterpret_cast<Course<Rule>*>(f.courses + int64_t(t.course) * course_bytes), course_of<Rule>(scalars),
        of_plan);
}

}  // namespace onepass::cuda
