// The boundary: Python's parameters, gradients and state on one side, the plan on the other.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <utility>

#include "cpu/step.h"
#include "dlpack.h"

namespace onepass {

// A plan with the Python objects its tensors come from. It borrows those objects, so that Python's garbage collector
// sees every reference: the caller keeps parameters and state alive for as long as the binding.
class Binding {
 public:
  Binding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments, bool sgd,
          bool projected, bool lazy_buffer, const pybind11::list& first);

  void set_hypers(const pybind11::list& hypers);

  // Looks at every object of the coming step. False if anything is not as it was bound, or cannot be stepped; why, is
  // for the caller to find out.
  bool ready(const pybind11::list& groups);

  // Steps, and returns the parameters that were written to. Only after `ready` said true.
  pybind11::list run(int threads);

  pybind11::list verdicts() const;

 private:
  using Entries = std::vector<std::pair<PyObject*, PyObject*>>;

  struct Source {
    PyObject* param;
    PyObject* moment[max_moments] = {};
    PyObject* step = nullptr;
    PyObject* gate_counter = nullptr;
    PyObject* state = nullptr;
    Entries entries;  // of `state`
  };

  void add(PyObject* param, int group, bool projected);
  void* number(PyObject* object, int bits) const;
  bool read(const Source& source, Tensor& t, PyObject* gradient) const;
  bool read_operand(PyObject* object, const Tensor& t, Dtype dtype, View& view) const;
  bool describe(PyObject* object, dlpack::Tensor& out) const;

  const dlpack::ExchangeApi* api_;
  pybind11::object is_neg_;  // torch.Tensor.is_neg: complex autograd leaves gradients to be negated by their reader
  PyObject* state_;
  pybind11::list moments_;
  Entries state_entries_;
  std::vector<std::vector<PyObject*>> groups_;
  std::vector<Source> sources_;
  std::vector<pybind11::object> gradients_;  // kept alive from `ready` to the end of `run`
  Plan plan_;
  std::unique_ptr<CpuStepper> stepper_;
};

}  // namespace onepass
