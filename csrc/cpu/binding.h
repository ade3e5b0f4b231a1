// The boundary of the CPU backend.
#pragma once

#include "../binding.h"
#include "executor.h"

namespace onepass {

class CpuBinding : public Binding {
 public:
  CpuBinding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments,
             const std::string& rule, bool projected, bool lazy_buffer, const pybind11::list& first)
      : Binding(groups, state, moments, rule, projected, lazy_buffer, first, {dlpack::cpu, 0}), executor_(plan_) {}

  // Steps, and returns the parameters that were written to. Only after `ready` said true.
  // Every gradient is multiplied by `factor`.
  pybind11::list run(int threads, double factor) {
    {
      pybind11::gil_scoped_release unlocked;
      executor_.step(threads, factor);
    }
    return stepped();
  }

  // The sum of squares over all gradients. Only after `ready` said true.
  double square_sum(int threads) {
    double sum;
    {
      pybind11::gil_scoped_release unlocked;
      sum = executor_.square_sum(threads);
    }
    release_gradients();
    return sum;
  }

  pybind11::list verdicts() const { return tuples_of(executor_.verdicts()); }

 private:
  CpuExecutor executor_;
};

}  // namespace onepass
