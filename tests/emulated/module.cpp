// The Python module `emulated`: the CUDA backend's own sources, compiled for a CPU, and the handles of the host they
// run on.
#include "../../csrc/cuda/binding.h"

#include "control.h"

namespace py = pybind11;

PYBIND11_MODULE(emulated, m) {
  onepass::add_plan(m);
  onepass::add_cuda_plan(m);
  m.def("reset", &emulated::reset, py::arg("seed") = 0);
}
