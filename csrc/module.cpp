// The Python module onepass._C.
#include "cpu/binding.h"

#ifdef ONEPASS_CUDA
#include "cuda/binding.h"
#endif

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

  onepass::add_reader(m);
  onepass::add_plan(m);
  using onepass::CpuBinding;
  py::class_<CpuBinding, onepass::Binding>(m, "CpuPlan", py::module_local())
      .def(py::init<const py::list&, const py::dict&, const py::list&, const std::string&, bool, bool, const py::list&,
                    const py::list&, const py::list&, const py::list&, bool, const py::dict&>(),
           py::arg("params"), py::arg("state"), py::arg("moments"), py::arg("rule"), py::arg("projected"),
           py::arg("lazy_buffer"), py::arg("first"), py::arg("precisions"), py::arg("numbers"), py::arg("shards"),
           py::arg("exchanges"), py::arg("direct_reads"))
      .def("square_sums", &CpuBinding::square_sums, py::arg("threads"))
      .def("begin", &CpuBinding::begin, py::arg("threads"), py::arg("factor"))
      .def("gate_stats", &CpuBinding::gate_stats)
      .def("update", &CpuBinding::update)
      .def("decide", &CpuBinding::decide)
      .def("correct", &CpuBinding::correct)
      .def_property_readonly("stats", py::cpp_function(&CpuBinding::stats, py::keep_alive<0, 1>()))
      .def_property_readonly("row_sums", py::cpp_function(&CpuBinding::row_sums, py::keep_alive<0, 1>()))
      .def_property_readonly("coefficients", py::cpp_function(&CpuBinding::coefficients, py::keep_alive<0, 1>()))
      .def("verdicts", &CpuBinding::verdicts);

#ifdef ONEPASS_CUDA
  m.attr("cuda_archs") = ONEPASS_CUDA_ARCHS;
  onepass::add_cuda_plan(m);
#else
  m.attr("cuda_archs") = "";
#endif
}
