// The boundary: Python's parameters, gradients and state on one side, the plan on the other.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>

#include "direct_reads.h"
#include "dlpack.h"
#include "plan.h"
#include "rules/verdict.h"

namespace onepass {

// An attribute that the objects of a Python class hold in one of its __slots__, or in their dict.
class Slot {
 public:
  Slot() = default;
  Slot(const pybind11::object& type, const char* name);

  PyObject* of(PyObject* object) const;  // borrowed from the object

 private:
  PyObject* name_ = nullptr;
  Py_ssize_t offset_ = 0;  // in an object of the class, 0 if it is in the dict
};

// Reads Python's tensors: directly where that is proven, else through DLPack's exchange table. Of a DTensor, its local
// tensor.
class Reader {
 public:
  explicit Reader(const pybind11::dict& direct_reads);

  // Compares direct reads of an object with the table; where they differ, all reads are through the table from then on.
  void compare(PyObject* object);
  // Of all that `describe` reads.
  void compare_all(const pybind11::list& params, const pybind11::dict& state);

  // Describes a tensor, with byte_offset added to its address; false if there is no describing it.
  bool read(PyObject* object, dlpack::Tensor& out) const;
  // Complex autograd leaves gradients to be negated by their reader.
  bool is_negated(PyObject* object) const;
  void prefetch(PyObject* object) const { direct_.prefetch(object); }
  static pybind11::object gradient_of(PyObject* param);
  // The local tensor of a DTensor, borrowed from it; any other object itself.
  PyObject* local_of(PyObject* object) const;
  // Whether a gradient is placed as its parameter: both plain tensors, or DTensors of one mesh and equal placements,
  // with no collective under way.
  bool is_placed_as(PyObject* gradient, PyObject* param) const;

  // A description of some parameters and their state, to be compared with that of the last step: the addresses of the
  // gradients (int64); the rest of DLPack's description of the gradients, and which parameters have one; addresses and
  // descriptions of all other tensors, with the identities of the state's entries. None if a tensor cannot be
  // described.
  pybind11::object describe(const pybind11::list& params, const pybind11::dict& state) const;

  const dlpack::ExchangeApi& api() const { return *api_; }

 private:
  bool is_tensor(PyObject* object) const;
  bool is_dtensor(PyObject* object) const {
    return dtensor_ && reinterpret_cast<PyObject*>(Py_TYPE(object)) == dtensor_.ptr();
  }

  DirectReads direct_;
  Slot local_, spec_;  // of a DTensor
  const dlpack::ExchangeApi* api_;
  pybind11::object tensor_, is_neg_;  // torch.Tensor, and its is_neg
  pybind11::object dtensor_;          // the class, if it has been imported
};

// A plan with the Python objects its tensors come from. It borrows those objects, so that Python's garbage collector
// sees every reference: the caller keeps parameters and state alive for as long as the binding.
class Binding {
 public:
  Binding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments,
          const std::string& rule, bool projected, bool lazy_buffer, const pybind11::list& first,
          const pybind11::list& precisions, const pybind11::list& numbers, const pybind11::list& shards, bool exchanges,
          const pybind11::dict& direct_reads, dlpack::Device device);

  void set_hypers(const pybind11::list& hypers);

  // Reads the address of every tensor of the next step. False if a tensor differs from what was bound, or cannot be
  // stepped; the caller finds out why. `needs_state`: false too if state is missing, which `square_sum` does not need.
  bool ready(const pybind11::list& groups, bool needs_state);

  // The tensors whose moments are new and that no step was taken with, by their number in the plan, and their
  // parameters. Steps that the device counts are not known here.
  pybind11::list unstepped() const;

  // The place of the coefficient of every split row, among those of all rows.
  std::vector<int64_t> split_coefficients() const;

  // Releases the gradients, of which `ready` holds references until the step.
  void release_gradients();

  // Ends a step: the parameters that were stepped, and the local tensors of DTensors. Releases their gradients.
  pybind11::list end();

 protected:
  Scaling scaling_of(pybind11::handle clip, pybind11::handle grad_scale, pybind11::handle found_inf) const;
  pybind11::handle parameter(int tensor) const { return sources_[tensor].param; }
  void* current_stream() const;

  Plan plan_;
  dlpack::Device device_;

 private:
  using Entries = std::vector<std::pair<PyObject*, PyObject*>>;

  struct Source {
    PyObject* param;
    PyObject* moment[max_moments] = {};
    PyObject* scale[max_moments] = {};  // of moments with blocks
    PyObject* step = nullptr;
    PyObject* gate_counter = nullptr;
    PyObject* remainder = nullptr;
    PyObject* state = nullptr;
    Entries entries;  // of `state`
  };

  void add(PyObject* param, int group, bool projected, const Precision& precision, pybind11::handle shard);
  static Precision precision_of(pybind11::handle given);
  void add_device_hyper(pybind11::handle given, const Hyper& fixed);
  void* number(PyObject* object, dlpack::DataType dtype, dlpack::Device device) const;
  bool same_state();
  bool same_entries(Source& source) const;
  bool read(Source& source, Tensor& t, PyObject* gradient, bool needs_state) const;
  bool read_state(Source& source, Tensor& t, bool needs_state) const;
  bool read_scales(PyObject* object, const Tensor& t, uint8_t*& scales) const;
  static bool take_operand(const dlpack::Tensor& x, const Tensor& t, dlpack::DataType dtype, View& view);
  bool read_operand(PyObject* object, const Tensor& t, dlpack::DataType dtype, View& view) const;
  bool read_device_numbers();
  bool read_device_number(PyObject* object, DeviceNumber& number) const;
  bool describe(PyObject* object, dlpack::Device device, dlpack::Tensor& out) const;
  void prefetch(const Source& source) const;

  Reader reader_;
  PyObject* state_;
  pybind11::list moments_, scales_;    // their keys in the state
  std::vector<Precision> precisions_;  // of the groups, as they were bound
  Entries state_entries_;
  std::vector<std::vector<PyObject*>> groups_;
  std::vector<Source> sources_;
  std::vector<pybind11::object> gradients_;  // kept alive from `ready` to the end of the step
  std::vector<std::pair<DeviceNumber*, pybind11::object>> device_numbers_;
};

inline void add_reader(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Reader>(m, "Reader", py::module_local())
      .def(py::init<const py::dict&>(), py::arg("direct_reads"))
      .def("compare_all", &Reader::compare_all, py::arg("params"), py::arg("state"))
      .def("describe", &Reader::describe, py::arg("params"), py::arg("state"));
}

inline void add_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<Binding>(m, "Plan", py::module_local())
      .def("set_hypers", &Binding::set_hypers, py::arg("hypers"))
      .def("ready", &Binding::ready, py::arg("params"), py::arg("needs_state"))
      .def("unstepped", &Binding::unstepped)
      .def_property_readonly("split_coefficients", &Binding::split_coefficients)
      .def("release_gradients", &Binding::release_gradients)
      .def("end", &Binding::end);
}

}  // namespace onepass
