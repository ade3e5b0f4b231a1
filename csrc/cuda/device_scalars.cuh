// Scalars of the groups whose steps the device counts. Hyper-parameters and step counts are read from device memory at
// every step, so that replaying a captured CUDA graph uses the current values.
#pragma once

#include "memory.cuh"
#include "plan.cuh"

namespace onepass::cuda {

__device__ inline double read(const DeviceNumber& n) {
  if (!n.at) return n.value;
  if (n.wide) return load(static_cast<const double*>(n.at), of_plan);
  return load(static_cast<const float*>(n.at), of_plan);
}

// The same as hyper_of in hyperparams.py.
__device__ inline Hyper hyper_of(const DeviceHyper& group) {
  Hyper h = group.fixed;
  h.lr = read(group.lr);
  h.beta1 = read(group.beta1);
  h.beta2 = read(group.beta2);
  h.momentum = read(group.momentum);
  const double wd = read(group.weight_decay);
  const double decay_lr = group.decouple_lr ? h.lr / read(group.initial_lr) : h.lr;
  if (group.decay == Decay::l2) {
    h.l2 = wd;
  } else if (group.decay == Decay::metric) {
    h.metric_decay = decay_lr * wd;
  } else {
    h.decay = decay_lr * wd;
    if (group.over_one_minus_momentum && wd != 0) h.decay /= 1 - h.momentum;
  }
  return h;
}

// Whether the step is to be skipped.
__device__ __forceinline__ bool skipped(const Scaling& scaling) {
  return read(scaling.found_inf) != 0;
}

// Counts the step of one tensor and computes its scalars.
template <class Rule>
__device__ void device_scalars(const DevicePlan& plan, int tensor) {
  const DeviceTensor& t = plan.tensors[tensor];
  Hyper h = hyper_of(plan.hypers[t.hyper_index]);
  h.grad_scale *= read(plan.scaling.clip) / read(plan.scaling.grad_scale);
  if (t.negated) h.grad_scale = -h.grad_scale;
  float count = 0;
  if (t.step) store(t.step, count = load(t.step, of_plan) + 1, of_plan);
  const bool first = plan.lazy_buffer && t.first_step && load(plan.first_steps + tensor, of_plan);
  if (first) store(plan.first_steps + tensor, false, of_plan);
  const Scalars scalars = scalars_of(h, Rule::id, count, first);
  store(reinterpret_cast<KernelScalars<Rule>*>(plan.scalars + int64_t(t.scalars_index) * scalars_bytes),
        kernel_scalars<Rule>(scalars), of_plan);
}

}  // namespace onepass::cuda
