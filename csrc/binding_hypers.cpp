// Hyper-parameters and scalings, which may be numbers or tensors on the device.
#include "binding.h"
#include "dlpack_tensor.h"

#include <stdexcept>

namespace py = pybind11;

namespace onepass {

Precision Binding::precision_of(py::handle given) {
  const auto flag = [&](const char* name) { return given.attr(name).cast<bool>(); };
  return {flag("master_weights"), given.attr("moment_bits").cast<int>(), flag("stochastic_rounding")};
}

void Binding::set_hypers(const py::list& hypers) {
  plan_.hypers.clear();
  plan_.device_hypers.assign(hypers.size(), {});
  device_numbers_.clear();
  for (py::handle h : hypers) {
    auto number = [&](const char* name) { return h.attr(name).cast<double>(); };
    auto flag = [&](const char* name) { return h.attr(name).cast<bool>(); };
    plan_.hypers.push_back({.lr = number("lr"),
                            .grad_scale = number("grad_scale"),
                            .beta1 = number("beta1"),
                            .beta2 = number("beta2"),
                            .momentum = number("momentum"),
                            .dampening = number("dampening"),
                            .eps = number("eps"),
                            .l2 = number("l2"),
                            .decay = number("decay"),
                            .metric_decay = number("metric_decay"),
                            .delta = number("delta"),
                            .wd_ratio = number("wd_ratio"),
                            .nesterov = flag("nesterov"),
                            .proximal = flag("proximal"),
                            .project_momentum = flag("project_momentum"),
                            .speculate = flag("speculate"),
                            .fixed_gate = h.attr("fixed_gate").cast<int>(),
                            .precision = precision_of(h.attr("precision")),
                            .seed = h.attr("seed").cast<uint64_t>()});
    if (py::object device_hyper = h.attr("device_hyper"); !device_hyper.is_none())
      add_device_hyper(device_hyper, plan_.hypers.back());
  }
}

void Binding::add_device_hyper(py::handle given, const Hyper& fixed) {
  DeviceHyper& out = plan_.device_hypers[plan_.hypers.size() - 1];
  out.on_device = true;
  out.capturable = given.attr("capturable").cast<bool>();
  out.fixed = fixed;
  const auto decay = given.attr("decay").cast<std::string>();
  out.decay = decay == "l2" ? Decay::l2 : decay == "metric" ? Decay::metric : Decay::direct;
  out.decouple_lr = given.attr("decouple_lr").cast<bool>();
  out.over_one_minus_momentum = given.attr("over_one_minus_momentum").cast<bool>();
  auto number = [&](const char* name, DeviceNumber& to) {
    py::object value = given.attr(name);
    if (py::isinstance<py::float_>(value))
      to.value = value.cast<double>();
    else
      device_numbers_.emplace_back(&to, value);
  };
  number("lr", out.lr);
  number("weight_decay", out.weight_decay);
  number("beta1", out.beta1);
  number("beta2", out.beta2);
  number("momentum", out.momentum);
  number("initial_lr", out.initial_lr);
}

// Takes the addresses of the hyper-parameters that are tensors on the device.
bool Binding::read_device_numbers() {
  for (auto& [number, object] : device_numbers_)
    if (!read_device_number(object.ptr(), *number)) return false;
  return true;
}

bool Binding::read_device_number(PyObject* object, DeviceNumber& number) const {
  dlpack::Tensor x;
  Dtype dtype;
  if (!describe(object, device_, x) || !dtype_of(x.dtype, dtype) || bytes_of(dtype) < 4) return false;
  number.at = x.data;
  number.wide = dtype == Dtype::f64;
  return true;
}

Scaling Binding::scaling_of(py::handle clip, py::handle grad_scale, py::handle found_inf) const {
  Scaling out;
  auto take = [&](py::handle given, DeviceNumber& to) {
    if (!given.is_none() && !read_device_number(given.ptr(), to))
      throw std::runtime_error("onepass: a scale of the gradients is not a float32 or float64 number on their device");
  };
  take(clip, out.clip);
  take(grad_scale, out.grad_scale);
  take(found_inf, out.found_inf);
  return out;
}

}  // namespace onepass
