// The boundary of the CPU backend.
#pragma once

#include "../binding.h"
#include "step.h"

namespace onepass {

class CpuBinding : public Binding {
 public:
  CpuBinding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments, bool sgd,
             bool projected, bool lazy_buffer, const pybind11::list& first)
      : Binding(groups, state, moments, sgd, projected, lazy_buffer, first, {dlpack::cpu, 0}), stepper_(plan_) {}

  // Steps, and returns the parameters that were written to. Only after `ready` said true.
  // Every gradient is multiplied by `factor`.
  pybind11::list run(int threads, double factor) {
    {
      pybind11::gil_scoped_release unlocked;
      stepper_.step(threads, factor);
    }
    return stepped();
  }

  // The sum of squares over all gradients. Only after `ready` said true.
  double square_sum(int threads) {
    double sum;
    {
      pybind11::gil_scoped_release unlocked;
      sum = stepper_.square_sum(threads);
    }
    let_go();
    return sum;
  }

  pybind11::list verdicts() const { return tell(stepper_.verdicts()); }

 private:
  CpuStepper stepper_;
};

}  // namespace onepass
