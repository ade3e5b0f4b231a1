// The boundary: Python's parameters, gradients and state on one side, the plan on the other.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

#include "dlpack.h"
#include "plan.h"
#include "rules/verdict.h"

namespace onepass {

// A plan with the Python objects its tensors come from. It borrows those objects, so that Python's garbage collector
// sees every reference: the caller keeps parameters and state alive for as long as the binding.
class Binding {
 public:
  Binding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments, bool sgd,
          bool projected, bool lazy_buffer, const pybind11::list& first, dlpack::Device device);

  void set_hypers(const pybind11::list& hypers);

  // Looks at every object of the coming step. False if anything is not as it was bound, or cannot be stepped; why, is
  // for the caller to find out.
  bool ready(const pybind11::list& groups);

  // Releases the gradients, which `ready` has kept for the step.
  void let_go();

 protected:
  // The parameters that were stepped; lets go of their gradients.
  pybind11::list stepped();
  Scaling scaling_of(pybind11::handle clip, pybind11::handle grad_scale, pybind11::handle found_inf) const;
  pybind11::list tell(const std::vector<Verdict>& verdicts) const;
  pybind11::handle parameter(int tensor) const { return sources_[tensor].param; }
  void* current_stream() const;

  Plan plan_;
  dlpack::Device device_;

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
  void add_live(pybind11::handle live, const Hyper& fixed);
  void* number(PyObject* object, int bits, dlpack::Device device) const;
  bool same_state();
  bool same_entries(Source& source) const;
  bool read(Source& source, Tensor& t, PyObject* gradient) const;
  bool read_operand(PyObject* object, const Tensor& t, Dtype dtype, View& view) const;
  bool read_live();
  bool read_live(PyObject* object, LiveNumber& number) const;
  bool describe(PyObject* object, dlpack::Device device, dlpack::Tensor& out) const;

  const dlpack::ExchangeApi* api_;
  pybind11::object is_neg_;  // torch.Tensor.is_neg: complex autograd leaves gradients to be negated by their reader
  PyObject* state_;
  pybind11::list moments_;
  Entries state_entries_;
  std::vector<std::vector<PyObject*>> groups_;
  std::vector<Source> sources_;
  std::vector<pybind11::object> gradients_;  // kept alive from `ready` to the end of the step
  std::vector<std::pair<LiveNumber*, pybind11::object>> live_tensors_;
};

inline void add_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Binding>(m, "Plan", py::module_local())
      .def("set_hypers", &Binding::set_hypers, py::arg("hypers"))
      .def("ready", &Binding::ready, py::arg("params"))
      .def("let_go", &Binding::let_go);
}

}  // namespace onepass
