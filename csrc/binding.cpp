#include "binding.h"
#include "dlpack_tensor.h"

#include <structmember.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_set>

namespace py = pybind11;

namespace onepass {

namespace {

constexpr const char* remainder_key = "master_param";  // masters.py
constexpr const char* scale_suffix = "_scale";         // blocks.py

std::vector<std::pair<PyObject*, PyObject*>> entries_of(PyObject* dict) {
  std::vector<std::pair<PyObject*, PyObject*>> entries;
  PyObject *key, *value;
  for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value);) entries.emplace_back(key, value);
  return entries;
}

// Whether a dict holds just these objects, by identity and in this order: no hashing, no comparison.
bool unchanged(PyObject* dict, const std::vector<std::pair<PyObject*, PyObject*>>& entries) {
  if (PyDict_Size(dict) != static_cast<Py_ssize_t>(entries.size())) return false;
  PyObject *key, *value;
  size_t i = 0;
  for (Py_ssize_t at = 0; PyDict_Next(dict, &at, &key, &value); ++i)
    if (i >= entries.size() || entries[i].first != key || entries[i].second != value) return false;
  return true;
}

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t all = 1;
  for (int64_t size : sizes) all *= size;
  return all;
}

// Whether the elements fill a stretch of memory and, for a projected tensor, dim 0 is the outermost.
bool packs(const Tensor& t) {
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (size_t d = 0; d < t.shape.size(); ++d)
    if (t.shape[d] != 1) dims.emplace_back(t.p.strides[d], t.shape[d]);
  std::sort(dims.begin(), dims.end());
  int64_t reach = 1;
  for (auto [stride, size] : dims) {
    if (stride != reach) return false;
    reach *= size;
  }
  return t.rows <= 1 || t.p.strides[0] == t.length;
}

// Whether the elements of a tensor lie in memory in the order of its shape.
bool is_contiguous(const Tensor& t) {
  int64_t reach = 1;
  for (int d = static_cast<int>(t.shape.size()) - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.p.strides[d] != reach) return false;
    reach *= t.shape[d];
  }
  return true;
}

const dlpack::ExchangeApi* exchange_api() {
  auto capsule = py::module_::import("torch").attr("Tensor").attr("__dlpack_c_exchange_api__").cast<py::capsule>();
  auto api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
  if (!api) throw py::error_already_set();
  if (api->header.version.major != dlpack::supported_major || !api->tensor_from_object)
    throw std::runtime_error("this torch's DLPack exchange table is of a version that onepass does not know");
  return api;
}

py::object attribute(PyObject* object, PyObject* name) {
  auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
  if (!value) throw py::error_already_set();
  return value;
}

template <class T>
void append(std::string& bytes, const T* values, size_t count) {
  bytes.append(reinterpret_cast<const char*>(values), count * sizeof(T));
}

}  // namespace

Reader::Reader(const py::dict& direct_reads) : direct_(direct_reads) {
  tensor_ = py::module_::import("torch").attr("Tensor");
  is_neg_ = tensor_.attr("is_neg");
  api_ = exchange_api();
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (PyObject* module = PyDict_GetItemString(modules.ptr(), "torch.distributed.tensor"))
    dtensor_ = py::getattr(module, "DTensor", py::none());
  local_ = Slot(dtensor_, "_local_tensor");
  spec_ = Slot(dtensor_, "_spec");
}

Slot::Slot(const py::object& type, const char* name) : name_(PyUnicode_InternFromString(name)) {
  const py::object found = type ? py::getattr(type, name, py::none()) : py::none();
  if (!Py_IS_TYPE(found.ptr(), &PyMemberDescr_Type)) return;
  const PyMemberDef& member = *reinterpret_cast<PyMemberDescrObject*>(found.ptr())->d_member;
  if (member.type == T_OBJECT_EX) offset_ = member.offset;
}

PyObject* Slot::of(PyObject* object) const {
  PyObject* const value = offset_ ? *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offset_) : nullptr;
  return value ? value : attribute(object, name_).ptr();
}

PyObject* Reader::local_of(PyObject* object) const {
  return is_dtensor(object) ? local_.of(object) : object;
}

bool Reader::is_placed_as(PyObject* gradient, PyObject* param) const {
  if (is_dtensor(gradient) != is_dtensor(param)) return false;
  if (!is_dtensor(param)) return true;
  if (reinterpret_cast<PyObject*>(Py_TYPE(local_of(gradient))) != tensor_.ptr()) return false;
  const py::handle g = spec_.of(gradient), p = spec_.of(param);
  if (g.is(p)) return true;
  static PyObject* const parts[] = {PyUnicode_InternFromString("placements"), PyUnicode_InternFromString("mesh")};
  for (PyObject* part : parts)
    if (!attribute(g.ptr(), part).equal(attribute(p.ptr(), part))) return false;
  return true;
}

bool Reader::is_tensor(PyObject* object) const {
  return PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(tensor_.ptr()));
}

// The proof at import is of tensors on the CPU. Where direct reads say something else than the table of a tensor, they
// are given up.
void Reader::compare(PyObject* object) {
  object = local_of(object);
  dlpack::Tensor x, y;
  if (!direct_.describe(object, x)) return;
  const bool known = api_->tensor_from_object(object, &y) == 0;
  if (!known) PyErr_Clear();
  if (!known || !same_description(x, y)) direct_ = DirectReads({});
}

bool Reader::read(PyObject* object, dlpack::Tensor& out) const {
  object = local_of(object);
  if (!direct_.describe(object, out) && api_->tensor_from_object(object, &out) != 0) return PyErr_Clear(), false;
  out.data = static_cast<char*>(out.data) + out.byte_offset;
  return true;
}

bool Reader::is_negated(PyObject* object) const {
  object = local_of(object);
  if (direct_.can_read(object)) return direct_.is_neg(object);
  const auto negated = py::reinterpret_steal<py::object>(PyObject_CallOneArg(is_neg_.ptr(), object));
  if (!negated) throw py::error_already_set();
  return negated.ptr() == Py_True;
}

py::object Reader::gradient_of(PyObject* param) {
  static PyObject* const grad = PyUnicode_InternFromString("grad");
  return attribute(param, grad);
}

void Reader::compare_all(const py::list& params, const py::dict& state) {
  for (py::handle p : params) {
    compare(p.ptr());
    compare(gradient_of(p.ptr()).ptr());
  }
  PyObject *key, *own, *name, *value;
  for (Py_ssize_t i = 0; PyDict_Next(state.ptr(), &i, &key, &own);)
    for (Py_ssize_t j = 0; PyDict_Check(own) && PyDict_Next(own, &j, &name, &value);) compare(value);
}

py::object Reader::describe(const py::list& params, const py::dict& state) const {
  std::string addresses, gradients, rest;
  // Appends the metadata of a tensor to `out`, its address to `at`.
  const auto add = [this](PyObject* object, std::string& out, std::string& at) {
    dlpack::Tensor x;
    if (!read(object, x)) return false;
    append(at, &x.data, 1);
    append(out, &x.device, 1);
    append(out, &x.dtype, 1);
    append(out, &x.ndim, 1);
    append(out, x.shape, x.ndim);
    append(out, x.strides, x.ndim);
    return true;
  };
  for (py::handle p : params) {
    if (!add(p.ptr(), rest, rest)) return py::none();
    const py::object g = gradient_of(p.ptr());
    gradients.push_back(g.is_none() ? 0 : 1);
    if (g.is_none()) continue;
    if (!is_placed_as(g.ptr(), p.ptr())) return py::none();
    gradients.push_back(is_negated(g.ptr()));
    if (!add(g.ptr(), gradients, addresses)) return py::none();
  }
  PyObject *key, *own, *name, *value;
  for (Py_ssize_t i = 0; PyDict_Next(state.ptr(), &i, &key, &own);) {
    append(rest, &key, 1);
    append(rest, &own, 1);
    // Entries of others, too: what is no tensor, or one without strides, is told by its identity alone.
    for (Py_ssize_t j = 0; PyDict_Check(own) && PyDict_Next(own, &j, &name, &value);) {
      append(rest, &name, 1);
      append(rest, &value, 1);
      if (is_tensor(value)) add(value, rest, rest);
    }
  }
  return py::make_tuple(py::bytes(addresses), py::bytes(gradients), py::bytes(rest));
}

Binding::Binding(const py::list& groups, const py::dict& state, const py::list& moments, const std::string& rule,
                 bool projected, bool lazy_buffer, const py::list& first, const py::list& precisions,
                 const py::list& numbers, const py::list& shards, bool exchanges, const py::dict& direct_reads,
                 dlpack::Device device)
    : device_(device),
      reader_(direct_reads),
      state_(state.ptr()),
      moments_(moments),
      state_entries_(entries_of(state.ptr())) {
  plan_.rule = rule == "adam" ? RuleId::adam : RuleId::momentum;
  plan_.lazy_buffer = lazy_buffer;
  plan_.exchanges = exchanges;
  for (py::handle key : moments) scales_.append(py::str(key.cast<std::string>() + scale_suffix));
  std::unordered_set<PyObject*> firsts;
  for (py::handle p : first) firsts.insert(p.ptr());
  for (size_t g = 0; g < groups.size(); ++g) {
    precisions_.push_back(precision_of(precisions[g]));
    auto number = numbers[g].cast<uint32_t>();
    groups_.emplace_back();
    const auto parts = shards[g].cast<py::list>();
    for (py::handle p : groups[g].cast<py::list>()) {
      groups_.back().push_back(p.ptr());
      add(p.ptr(), static_cast<int>(g), projected, precisions_.back(), parts[groups_.back().size() - 1]);
      plan_.tensors.back().first_step = firsts.count(p.ptr()) > 0;
      plan_.tensors.back().number = number++;
    }
  }
  gradients_.resize(sources_.size());
}

// shard: of sharding.py, or None.
void Binding::add(PyObject* param, int group, bool projected, const Precision& precision, py::handle shard) {
  const py::object gradient = Reader::gradient_of(param);
  reader_.compare(param);
  reader_.compare(gradient.ptr());
  dlpack::Tensor x;
  if (!describe(param, device_, x)) throw std::runtime_error("a parameter cannot be described through DLPack");
  Tensor t;
  t.group = group;
  t.shape.assign(x.shape, x.shape + x.ndim);
  std::vector<int64_t> whole = t.shape;
  if (!shard.is_none()) {
    whole = shard.attr("shape").cast<std::vector<int64_t>>();
    t.first = shard.attr("first").cast<int64_t>();
    t.split = shard.attr("split").cast<bool>();
  }
  // Decisions are by the whole tensor: this part of it may be empty.
  const int64_t elements = product(whole);
  const bool has_rows = whole.size() > 1 && elements > 0;
  if (Dtype dtype; dtype_of(x.dtype, dtype))
    t.storage = storage_of(dtype, precision, elements, has_rows ? elements / whole[0] : elements);
  else
    throw std::runtime_error("a parameter has a dtype that cannot be stepped");
  t.projected = projected && has_rows;
  if (has_rows && (t.projected || t.storage.blocks() || (t.split && plan_.draws(t)))) {
    t.rows = t.shape[0];
    t.length = product({t.shape.begin() + 1, t.shape.end()});
    t.whole_length = elements / whole[0];
  } else {
    t.length = t.whole_length = product(t.shape);
  }
  t.p.strides = strides_of(x);
  // The random bits of an element go by its place in the order of the shape.
  t.packed = packs(t) && (!plan_.draws(t) || is_contiguous(t));

  Source source;
  source.param = param;
  if (PyObject* own = PyDict_GetItemWithError(state_, param)) {
    source.state = own;
    source.entries = entries_of(own);
    for (const auto& [key, value] : source.entries) reader_.compare(value);
    for (size_t j = 0; j < moments_.size(); ++j) {
      source.moment[j] = PyDict_GetItemWithError(own, py::object(moments_[j]).ptr());
      if (t.storage.blocks()) source.scale[j] = PyDict_GetItemWithError(own, py::object(scales_[j]).ptr());
    }
    source.step = PyDict_GetItemString(own, "step");
    source.gate_counter = PyDict_GetItemString(own, "gate_counter");
    source.remainder = t.storage.master() ? PyDict_GetItemString(own, remainder_key) : nullptr;
  }
  auto adopt = [&](PyObject* operand, View& view) {
    view.strides = t.p.strides;
    if (!operand || operand == Py_None || !describe(operand, device_, x)) return;
    view.strides = strides_of(x);
    t.packed &= view.strides == t.p.strides;
  };
  adopt(gradient.ptr(), t.g);
  for (int j = 0; j < max_moments; ++j) adopt(source.moment[j], t.moment[j]);
  adopt(source.remainder, t.remainder);
  plan_.tensors.push_back(std::move(t));
  sources_.push_back(std::move(source));
}

// ---------------------------------------------------------------- every step

bool Binding::ready(const py::list& groups, bool needs_state) {
  if (groups.size() != groups_.size()) return false;
  for (size_t g = 0; g < groups_.size(); ++g) {
    PyObject* params = PyList_GET_ITEM(groups.ptr(), g);
    if (!PyList_Check(params) && !PyTuple_Check(params)) return false;
    if (PySequence_Fast_GET_SIZE(params) != static_cast<Py_ssize_t>(groups_[g].size())) return false;
    for (size_t i = 0; i < groups_[g].size(); ++i)
      if (PySequence_Fast_GET_ITEM(params, i) != groups_[g][i]) return false;
  }
  for (size_t g = 0; g < groups_.size(); ++g)
    if (plan_.hypers[g].precision != precisions_[g]) return false;
  if (!same_state() || !read_device_numbers()) return false;
  for (size_t i = 0; i < sources_.size(); ++i) {
    if (i + 2 < sources_.size()) prefetch(sources_[i + 2]);
    gradients_[i] = Reader::gradient_of(sources_[i].param);
    Tensor& t = plan_.tensors[i];
    t.active = !gradients_[i].is_none();
    if (!t.active) continue;
    if (!reader_.is_placed_as(gradients_[i].ptr(), sources_[i].param)) return false;
    if (!read(sources_[i], t, gradients_[i].ptr(), needs_state)) return false;
    t.negated = reader_.is_negated(gradients_[i].ptr());
  }
  return true;
}

// The descriptions of small tensors are more memory than their elements, and the step mostly waits for it: with this,
// one of 1,000 tensors of 64 took 0.76 to 0.87 of the time.
void Binding::prefetch(const Source& source) const {
  reader_.prefetch(source.param);
  for (PyObject* moment : source.moment) reader_.prefetch(moment);
  for (PyObject* scale : source.scale) reader_.prefetch(scale);
  reader_.prefetch(source.step);
  reader_.prefetch(source.remainder);
}

// Whether every parameter has the state dict that was bound. Entries of others, a hook's say, may come and go.
bool Binding::same_state() {
  if (unchanged(state_, state_entries_)) return true;
  for (const Source& source : sources_)
    if (PyDict_GetItemWithError(state_, source.param) != source.state) return PyErr_Clear(), false;
  state_entries_ = entries_of(state_);
  return true;
}

// The same of the entries of one parameter's state.
bool Binding::same_entries(Source& source) const {
  if (unchanged(source.state, source.entries)) return true;
  for (size_t j = 0; j < moments_.size(); ++j) {
    if (PyDict_GetItemWithError(source.state, py::object(moments_[j]).ptr()) != source.moment[j])
      return PyErr_Clear(), false;
    if (source.scale[j] && PyDict_GetItemWithError(source.state, py::object(scales_[j]).ptr()) != source.scale[j])
      return PyErr_Clear(), false;
  }
  if (PyDict_GetItemString(source.state, "step") != source.step) return false;
  if (PyDict_GetItemString(source.state, "gate_counter") != source.gate_counter) return false;
  if (source.remainder && PyDict_GetItemString(source.state, remainder_key) != source.remainder) return false;
  source.entries = entries_of(source.state);
  return true;
}

// Takes the addresses of a parameter that has a gradient, and of its state.
bool Binding::read(Source& source, Tensor& t, PyObject* gradient, bool needs_state) const {
  const dlpack::DataType dtype = type_of(t.storage.param);
  if (!read_operand(source.param, t, dtype, t.p)) return false;
  dlpack::Tensor g;
  if (!describe(gradient, device_, g)) return false;
  t.wide_gradient = bytes_of(t.storage.param) == 2 && g.dtype == dlpack::float32;
  if (!take_operand(g, t, t.wide_gradient ? dlpack::float32 : dtype, t.g)) return false;
  const bool stateless = moments_of(plan_.rule_id(t.group)) == 0 && t.storage.weight == Weight::plain;
  return stateless || read_state(source, t, needs_state);
}

// What was missing of the state when it was bound has no address; where state is needed, that is refused.
bool Binding::read_state(Source& source, Tensor& t, bool needs_state) const {
  if (source.state ? !same_entries(source) : needs_state) return false;
  const auto may_lack = [&](PyObject* object) { return !needs_state && (!object || object == Py_None); };
  const auto take = [&](PyObject* object, dlpack::DataType dtype, View& view) {
    return may_lack(object) || (object && read_operand(object, t, dtype, view));
  };
  const RuleId rule_id = plan_.rule_id(t.group);
  for (int j = 0; j < moments_of(rule_id); ++j)
    if (!take(source.moment[j], type_of(t.storage.moment), t.moment[j])) return false;
  for (int j = 0; j < max_moments; ++j)
    if (t.storage.blocks() && !may_lack(source.scale[j]) && !read_scales(source.scale[j], t, t.scale[j])) return false;
  if (t.storage.master() && !take(source.remainder, dlpack::int16, t.remainder)) return false;
  const dlpack::Device count_device = plan_.device_hypers[t.group].on_device ? device_ : dlpack::Device{dlpack::cpu, 0};
  const bool counted = rule_id == RuleId::adam || t.storage.stochastic();
  if (counted) t.step = static_cast<float*>(number(source.step, dlpack::float32, count_device));
  if (counted && !t.step && !may_lack(source.step)) return false;
  if (t.projected) t.gate_counter = static_cast<uint8_t*>(number(source.gate_counter, dlpack::uint8, device_));
  return !t.projected || t.gate_counter || may_lack(source.gate_counter);
}

// The address of a tensor of one number, or null.
void* Binding::number(PyObject* object, dlpack::DataType dtype, dlpack::Device device) const {
  dlpack::Tensor x;
  return object && describe(object, device, x) && x.dtype == dtype ? x.data : nullptr;
}

// Takes the address of one operand if it is still what was bound.
bool Binding::read_operand(PyObject* object, const Tensor& t, dlpack::DataType dtype, View& view) const {
  dlpack::Tensor x;
  return describe(object, device_, x) && take_operand(x, t, dtype, view);
}

bool Binding::take_operand(const dlpack::Tensor& x, const Tensor& t, dlpack::DataType dtype, View& view) {
  if (x.dtype != dtype || !same_shape(x, t.shape) || !same_strides(x, view.strides)) return false;
  view.data = x.data;
  return x.data || t.elements() == 0;
}

// Takes the address of the scales of a moment: contiguous, those of every row.
bool Binding::read_scales(PyObject* object, const Tensor& t, uint8_t*& scales) const {
  dlpack::Tensor x;
  const int64_t blocks = blocks_of(t.length);
  if (!object || !describe(object, device_, x) || x.dtype != dlpack::uint8) return false;
  if (!same_shape(x, {t.rows, blocks}) || !same_strides(x, {blocks, 1})) return false;
  scales = static_cast<uint8_t*>(x.data);
  return true;
}

// Describes a tensor on `device`; false if there is no describing it. What is wrong with it, the caller finds out in
// Python.
bool Binding::describe(PyObject* object, dlpack::Device device, dlpack::Tensor& out) const {
  return reader_.read(object, out) && out.device.type == device.type && out.device.id == device.id;
}

py::list Binding::end() {
  py::list stepped;
  for (size_t i = 0; i < sources_.size(); ++i)
    if (plan_.tensors[i].active) {
      PyObject* const param = sources_[i].param;
      stepped.append(py::handle(param));
      if (PyObject* local = reader_.local_of(param); local != param) stepped.append(py::handle(local));
    }
  release_gradients();
  return stepped;
}

py::list Binding::unstepped() const {
  py::list out;
  for (size_t i = 0; i < sources_.size(); ++i)
    if (plan_.tensors[i].first_step) out.append(py::make_tuple(static_cast<int>(i), py::handle(sources_[i].param)));
  return out;
}

std::vector<int64_t> Binding::split_coefficients() const {
  std::vector<int64_t> out(plan_.split_rows);
  for (const Tensor& t : plan_.tensors)
    for (int64_t row = 0; t.projected && t.split && row != t.rows; ++row)
      out[t.first_split_row + row] = t.first_coefficient + row;
  return out;
}

void Binding::release_gradients() {
  for (py::object& gradient : gradients_) gradient = py::object();
}

// The stream that torch works on at present. The CPU has none.
void* Binding::current_stream() const {
  void* stream = nullptr;
  if (device_.type != dlpack::cpu && reader_.api().current_stream(device_.type, device_.id, &stream) != 0)
    throw py::error_already_set();
  return stream;
}

}  // namespace onepass
