// The Python module `emulated`: bindings of the CUDA backend's own sources, compiled for a CPU, and of control.h.
#include <pybind11/stl.h>

#include "../../csrc/cuda/binding.h"
#include "../../csrc/cuda/memory.cuh"
#include "../../csrc/cuda/thread_group.cuh"
#include "control.h"

namespace py = pybind11;
using emulated::Device;
using namespace onepass;

namespace {

constexpr const char* operand_names[cuda::operands] = {"p", "g", "m", "v", "r", "plan", "row_stats"};

// Bytes that kernels loaded and stored since the reset, by operand.
py::dict traffic() {
  py::dict out;
  for (int i = 0; i < cuda::operands; ++i)
    out[operand_names[i]] = py::make_tuple(emulated::traffic[i][0], emulated::traffic[i][1]);
  return out;
}

std::vector<std::tuple<unsigned, unsigned, size_t>> tuples_of(const std::vector<emulated::Launch>& launches) {
  std::vector<std::tuple<unsigned, unsigned, size_t>> out;
  for (const emulated::Launch& launch : launches) out.emplace_back(launch.grid, launch.block, launch.shared_bytes);
  return out;
}

// The launch layout of unallocated tensors on the emulated device: bytes of the row cache, number of items for blocks,
// and of every item its tensor, first row, number of rows, and begin and end in the row.
py::tuple launch_layout_of(const std::vector<std::tuple<int, std::vector<int64_t>, bool, bool>>& tensors) {
  Plan plan;
  for (const auto& [dtype, shape, projected, packed] : tensors) {
    Tensor t;
    t.storage.param = static_cast<Dtype>(dtype);
    t.shape = shape;
    t.projected = projected;
    t.packed = packed;
    int64_t elements = 1;
    for (int64_t size : shape) elements *= size;
    t.rows = projected ? shape[0] : 1;
    t.length = elements / t.rows;
    plan.tensors.push_back(t);
  }
  const Device& d = emulated::device;
  const cuda::Limits limits{d.multiprocessors, d.shared_per_multiprocessor, d.shared_per_block, d.shared_reserved};
  const cuda::LaunchLayout layout = cuda::launch_layout_of(plan, limits, cuda::shared_storage_bytes());
  py::list items;
  for (const WorkItem& item : plan.items)
    items.append(py::make_tuple(item.tensor, item.row, item.rows, item.begin, item.end));
  return py::make_tuple(layout.row_cache_bytes, layout.block_items, items);
}

using Four = cuda::Pack<float, 4>;

float float_of(uint64_t bits) {
  return cuda::float_of(static_cast<uint32_t>(bits));
}

// Whether two results are the same: in all bits, or NaN both.
bool same(float a, float b) {
  return std::isnan(b) ? std::isnan(a) : cuda::bits_of(a) == cuda::bits_of(b);
}

// The floats with bits from `first` on, every step-th of them, whose root is not that of IEEE 754. A pack holds one of
// them and `others`.
std::vector<float> wrong_roots(uint64_t first, uint64_t step, uint64_t count, float others, int choice) {
  std::vector<float> wrong;
  emulated::approximation_choice = choice;
  for (uint64_t i = 0; i < count; ++i) {
    Four x(others);
    x.x[i % 4] = float_of(first + i * step);
    if (!same(sqrt(x).x[i % 4], std::sqrt(x.x[i % 4]))) wrong.push_back(x.x[i % 4]);
  }
  emulated::approximation_choice = -1;
  return wrong;
}

// The same of quotients a/b: a from `first` on, b by another step.
std::vector<std::pair<float, float>> wrong_quotients(uint64_t first, uint64_t step, uint64_t first_b, uint64_t step_b,
                                                     uint64_t count, int choice) {
  std::vector<std::pair<float, float>> wrong;
  emulated::approximation_choice = choice;
  for (uint64_t i = 0; i < count; ++i) {
    Four a(1.0f), b(3.0f);
    a.x[i % 4] = float_of(first + i * step), b.x[i % 4] = float_of(first_b + i * step_b);
    if (!same((a / b).x[i % 4], a.x[i % 4] / b.x[i % 4])) wrong.emplace_back(a.x[i % 4], b.x[i % 4]);
  }
  emulated::approximation_choice = -1;
  return wrong;
}

// Limits of the kernels, and sizes of their data structures.
py::dict limits() {
  py::dict out;
  out["gradients"] = cuda::max_gradients;
  out["scalars"] = cuda::max_scalars;
  out["words"] = cuda::Chunk::max_words;
  out["block"] = cuda::block_size;
  out["warp"] = cuda::warp_size;
  out["shared_storage"] = cuda::shared_storage_bytes();
  out["item_bytes"] = sizeof(cuda::DeviceItem);
  out["tensor_bytes"] = sizeof(cuda::DeviceTensor);
  out["row_stats_bytes"] = sizeof(RowStats);
  out["verdict_bytes"] = sizeof(Verdict);
  return out;
}

}  // namespace

PYBIND11_MODULE(emulated, m) {
  add_plan(m);
  add_cuda_plan(m);

  // The device, whose properties apply to the next plan.
  py::class_<Device>(m, "Device", py::module_local())
      .def_readwrite("multiprocessors", &Device::multiprocessors)
      .def_readwrite("compute_major", &Device::compute_major)
      .def_readwrite("shared_per_multiprocessor", &Device::shared_per_multiprocessor)
      .def_readwrite("shared_per_block", &Device::shared_per_block)
      .def_readwrite("shared_reserved", &Device::shared_reserved)
      .def_readwrite("blocks_per_multiprocessor", &Device::blocks_per_multiprocessor);
  m.attr("device") = py::cast(&emulated::device, py::return_value_policy::reference);
  m.attr("limits") = limits();

  m.def("reset", &emulated::reset, py::arg("seed") = 0);
  m.def("launches", [] { return tuples_of(emulated::launches()); });
  m.def("recorded", [] { return tuples_of(emulated::recorded()); });
  m.def("traffic", &traffic);
  m.def("set_capturing", &emulated::set_capturing, py::arg("on"));
  m.def("replay", &emulated::replay);
  m.def(
      "fail_next_launch", [](int error) { emulated::fail_next_launch(static_cast<cudaError_t>(error)); },
      py::arg("error") = static_cast<int>(cudaErrorLaunchFailure));
  m.def("wrong_roots", &wrong_roots);
  m.def("wrong_quotients", &wrong_quotients);
  m.def("draw", [](uint64_t seed, uint32_t step, uint32_t number, int64_t index) {
    return draw_at(draw_key(seed, step).with(number), index);
  });
  m.def("launch_layout_of", &launch_layout_of, py::arg("tensors"));
  m.def("subgroup_width", &cuda::subgroup_width, py::arg("vectors"), py::arg("rows"), py::arg("most"),
        py::arg("group"));
}
