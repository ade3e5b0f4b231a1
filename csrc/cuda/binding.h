// The boundary of the CUDA backend. torch allocates the device memory, of the size and with the content that the plan
// asks for.
#pragma once

#include "../binding.h"
#include "executor.h"

namespace onepass {

// The kernels run on a CPU in tests, on the tensors of a CPU.
#ifdef ONEPASS_EMULATED
constexpr dlpack::DeviceType cuda_device_type = dlpack::cpu;
#else
constexpr dlpack::DeviceType cuda_device_type = dlpack::cuda;
#endif

class CudaBinding : public Binding {
 public:
  CudaBinding(const pybind11::list& groups, const pybind11::dict& state, const pybind11::list& moments,
              const std::string& rule, bool projected, bool lazy_buffer, const pybind11::list& first,
              const pybind11::list& precisions, const pybind11::list& numbers, const pybind11::list& shards,
              bool exchanges, const pybind11::dict& direct_reads, int device)
      : Binding(groups, state, moments, rule, projected, lazy_buffer, first, precisions, numbers, shards, exchanges,
                direct_reads, {cuda_device_type, device}),
        executor_(plan_, device) {}

  int64_t bytes() const { return executor_.bytes(); }
  pybind11::bytes initial_bytes(uint64_t address) {
    const std::vector<char> bytes = executor_.initial_bytes(address);
    return pybind11::bytes(bytes.data(), bytes.size());
  }

  // The phases of a step, in this order, and then `end`, on the stream that is torch's current one at the first. Only
  // after `ready` returned true.
  void begin(const std::vector<int>& group_numbers, pybind11::handle clip, pybind11::handle grad_scale,
             pybind11::handle found_inf) {
    const Scaling scaling = scaling_of(clip, grad_scale, found_inf);
    const auto stream = static_cast<cudaStream_t>(stream_ = current_stream());
    pybind11::gil_scoped_release unlocked;
    executor_.begin(stream, group_numbers, scaling);
  }
  void gate_stats() { run(&cuda::CudaExecutor::gate_stats); }
  void update() { run(&cuda::CudaExecutor::update); }
  void decide() { run(&cuda::CudaExecutor::decide); }
  void correct() { run(&cuda::CudaExecutor::correct); }

  // Launches the sum of squares over all gradients, which is then to be found at `square_sum_at` of the plan's memory,
  // a double; or that of each tensor, at `square_sums_at`. Only after `ready` said true.
  void square_sum(const std::vector<int>& group_numbers, bool total) {
    const auto stream = static_cast<cudaStream_t>(stream_ = current_stream());
    {
      pybind11::gil_scoped_release unlocked;
      executor_.square_sum(stream, group_numbers, total);
    }
    release_gradients();
  }
  int64_t square_sum_at() const { return executor_.square_sum_at(); }
  int64_t square_sums_at() const { return executor_.square_sums_at(); }

  // The tensors that have a verdict of the last step, by their number in the plan, and their parameters.
  pybind11::list decided() const {
    pybind11::list out;
    for (int tensor : executor_.decided()) out.append(pybind11::make_tuple(tensor, parameter(tensor)));
    return out;
  }
  int64_t stats_at() const { return executor_.stats_at(); }
  int64_t row_sums_at() const { return executor_.row_sums_at(); }
  int64_t coefficients_at() const { return executor_.coefficients_at(); }
  int64_t verdicts_at() const { return executor_.verdicts_at(); }
  int64_t first_steps_at() const { return executor_.first_steps_at(); }

  std::vector<std::string> launches() const { return {executor_.launches().begin(), executor_.launches().end()}; }
  int row_cache_bytes() const { return executor_.layout().row_cache_bytes; }

  bool captured() const { return executor_.capturing(); }
  // Of the last step.
  uint64_t stream() const { return reinterpret_cast<uint64_t>(stream_); }

 private:
  void run(void (cuda::CudaExecutor::*phase)()) {
    pybind11::gil_scoped_release unlocked;
    (executor_.*phase)();
  }

  cuda::CudaExecutor executor_;
  void* stream_ = nullptr;
};

inline void add_cuda_plan(pybind11::module_& m) {
  namespace py = pybind11;
  py::class_<CudaBinding, Binding>(m, "CudaPlan", py::module_local())
      .def(py::init<const py::list&, const py::dict&, const py::list&, const std::string&, bool, bool, const py::list&,
                    const py::list&, const py::list&, const py::list&, bool, const py::dict&, int>(),
           py::arg("params"), py::arg("state"), py::arg("moments"), py::arg("rule"), py::arg("projected"),
           py::arg("lazy_buffer"), py::arg("first"), py::arg("precisions"), py::arg("numbers"), py::arg("shards"),
           py::arg("exchanges"), py::arg("direct_reads"), py::arg("device"))
      .def_property_readonly("memory_bytes", &CudaBinding::bytes)
      .def("initial_bytes", &CudaBinding::initial_bytes, py::arg("address"))
      .def("square_sum", &CudaBinding::square_sum, py::arg("group_numbers"), py::arg("total"))
      .def_property_readonly("square_sum_at", &CudaBinding::square_sum_at)
      .def_property_readonly("square_sums_at", &CudaBinding::square_sums_at)
      .def("begin", &CudaBinding::begin, py::arg("group_numbers"), py::arg("clip"), py::arg("grad_scale"),
           py::arg("found_inf"))
      .def("gate_stats", &CudaBinding::gate_stats)
      .def("update", &CudaBinding::update)
      .def("decide", &CudaBinding::decide)
      .def("correct", &CudaBinding::correct)
      .def_property_readonly("stats_at", &CudaBinding::stats_at)
      .def_property_readonly("row_sums_at", &CudaBinding::row_sums_at)
      .def_property_readonly("coefficients_at", &CudaBinding::coefficients_at)
      .def("decided", &CudaBinding::decided)
      .def_property_readonly("verdicts_at", &CudaBinding::verdicts_at)
      .def_property_readonly("first_steps_at", &CudaBinding::first_steps_at)
      .def_property_readonly("captured", &CudaBinding::captured)
      .def_property_readonly("stream", &CudaBinding::stream)
      .def_property_readonly("launches", &CudaBinding::launches)
      .def_property_readonly("row_cache_bytes", &CudaBinding::row_cache_bytes);
}

}  // namespace onepass
