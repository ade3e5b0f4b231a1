// The Python module onepass._C.
#include "binding.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.attr("version") = ONEPASS_VERSION;
  m.attr("build_flags") = ONEPASS_BUILD_FLAGS;
  m.def("isa", &onepass::isa, "The instruction set whose kernels run here.");
  m.def(
      "isas",
      [] {
        py::list names;
        for (const char* name : onepass::usable_isas()) names.append(name);
        return names;
      },
      "Every instruction set that this machine can run, best first.");

  using onepass::Binding;
  py::class_<Binding>(m, "Plan", py::module_local())
      .def(py::init<const py::list&, const py::dict&, const py::list&, bool, bool, bool, const py::list&>(),
           py::arg("params"), py::arg("state"), py::arg("moments"), py::arg("sgd"), py::arg("projected"),
           py::arg("lazy_buffer"), py::arg("first"))
      .def("set_hypers", &Binding::set_hypers, py::arg("hypers"))
      .def("ready", &Binding::ready, py::arg("params"))
      .def("run", &Binding::run, py::arg("threads"))
      .def("verdicts", &Binding::verdicts);
}
