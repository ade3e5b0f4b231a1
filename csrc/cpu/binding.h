// The boundary of the CPU backend.
#pragma once

#include "../binding.h"
#include "executor.h"

namespace onepass {

class CpuBinding : public Binding {
 public:
  CpuBinding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments,
             const std::string& rule, bool projected, bool lazy_buffer, const pybind11::list& first,
             const pybind11::list& precisions, const pybind11::list& numbers, const pybind11::list& shards,
             bool exchanges, const pybind11::dict& direct_reads)
      : Binding(groups, state, moments, rule, projected, lazy_buffer, first, precisions, numbers, shards, exchanges,
                direct_reads, {dlpack::cpu, 0}),
        executor_(plan_) {}

  // The phases of a step, in this order, and then `end`. Only after `ready` returned true. Every gradient is multiplied
  // by `factor`.
  void begin(int threads, double factor) {
    pybind11::gil_scoped_release unlocked;
    executor_.begin(threads, factor);
  }
  void gate_stats() { run(&CpuExecutor::gate_stats); }
  void update() { run(&CpuExecutor::update); }
  void decide() { run(&CpuExecutor::decide); }
  void correct() { run(&CpuExecutor::correct); }

  // The memory of the tensors' statistics, of the sums of split rows and of all coefficients, doubles, for as long as
  // the plan.
  pybind11::memoryview stats() { return doubles(executor_.stats()); }
  pybind11::memoryview row_sums() { return doubles(executor_.row_sums()); }
  pybind11::memoryview coefficients() { return doubles(executor_.coefficients()); }

  // The sum of squares over the gradient of every tensor, 0 where it has none. Only after `ready` said true.
  std::vector<double> square_sums(int threads) {
    std::vector<double> sums;
    {
      pybind11::gil_scoped_release unlocked;
      sums = executor_.square_sums(threads);
    }
    release_gradients();
    return sums;
  }

  // Of the last step: parameter, gate, cosine, squares of the norms, and whether it was corrected.
  pybind11::list verdicts() const {
    pybind11::list out;
    for (int i = 0; i < static_cast<int>(plan_.tensors.size()); ++i) {
      const Verdict& v = executor_.verdicts()[i];
      if (executor_.decided(i))
        out.append(pybind11::make_tuple(parameter(i), static_cast<int>(v.gate), v.scaled_cosine, v.sums.pp, v.sums.gg,
                                        v.corrected != 0));
    }
    return out;
  }

 private:
  template <class T>
  static pybind11::memoryview doubles(std::vector<T>& table) {
    constexpr pybind11::ssize_t bytes = sizeof(double);
    const auto count = static_cast<pybind11::ssize_t>(table.size() * sizeof(T) / sizeof(double));
    return pybind11::memoryview::from_buffer(reinterpret_cast<double*>(table.data()), {count}, {bytes});
  }

  void run(void (CpuExecutor::*phase)()) {
    pybind11::gil_scoped_release unlocked;
    (executor_.*phase)();
  }

  CpuExecutor executor_;
};

}  // namespace onepass
