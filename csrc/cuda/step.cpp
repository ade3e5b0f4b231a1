#include "step.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace onepass::cuda {

namespace {

constexpr const char* dtype_names[] = {"float32", "float64", "bfloat16", "float16"};
constexpr const char* family_names[] = {"Adam", "SGD with a buffer", "SGD"};

std::string kernel_name(Kernel kernel, Dtype dtype, Family family) {
  return std::string(kernel_names[static_cast<int>(kernel)]) + " (" + dtype_names[static_cast<int>(dtype)] + ", " +
         family_names[static_cast<int>(family)] + ")";
}

// Where the gradient of a tensor without elements is: not at null, as it is there, and its step counts.
constexpr char no_elements = 0;

template <class T>
void put(std::vector<char>& bytes, int64_t offset, const T* from, int64_t count) {
  if (count) std::memcpy(bytes.data() + offset, from, count * sizeof(T));
}

}  // namespace

CudaStepper::CudaStepper(Plan& plan, int device) : plan_(plan), device_(device), blocks_(4 * 3 * kernel_count) {
  auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "asking for its limits");
    return value;
  };
  limits_ = {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
             attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrReservedSharedMemoryPerBlock)};
  shape_ = shape_of(plan, limits_, board_bytes());
  lay_out();
}

// ---------------------------------------------------------------- the plan's memory

CudaStepper::Section CudaStepper::section(int64_t bytes) {
  const Section s{bytes_, (bytes + 7) / 8 * 8};
  bytes_ += (bytes + 255) / 256 * 256;
  return s;
}

void CudaStepper::lay_out() {
  const int64_t tensors = static_cast<int64_t>(plan_.tensors.size()), items = static_cast<int64_t>(plan_.items.size());
  gradients_in_memory_ = tensors > max_gradients;
  tensors_ = section(tensors * sizeof(DeviceTensor));
  items_ = section(items * sizeof(Item));
  layouts_ = section(static_cast<int64_t>(layouts().size()) * sizeof(int64_t));
  live_ = section(tensors * sizeof(LiveHyper));
  verdicts_ = section(tensors * sizeof(DeviceVerdict));
  reports_ = section(items * sizeof(Report));
  coefficients_ = section(plan_.coefficients * sizeof(double));
  tickets_ = section(tensors * sizeof(unsigned));
  fresh_ = section(tensors * sizeof(bool));
  square_sums_ = section(tensors * sizeof(double));
  square_sum_ = section(sizeof(double));
  gradients_ = section(gradients_in_memory_ ? tensors * sizeof(void*) : 0);
  courses_ = section(2 * tensors * course_bytes);  // a tensor's own, then those that are shared
  course_.resize(tensors);
  gradient_.resize(tensors);
  stepped_.resize(tensors);
}

// Sizes and strides of the tensors that are not packed.
std::vector<int64_t> CudaStepper::layouts() {
  std::vector<int64_t> all;
  layout_at_.clear();
  for (const Tensor& t : plan_.tensors) {
    layout_at_.push_back(t.packed ? -1 : static_cast<int64_t>(all.size()));
    if (t.packed) continue;
    all.insert(all.end(), t.shape.begin(), t.shape.end());
    for (const View* view : {&t.p, &t.g, &t.moment[0], &t.moment[1]})
      all.insert(all.end(), view->strides.begin(), view->strides.end());
  }
  return all;
}

std::vector<char> CudaStepper::image(uint64_t address) {
  address_ = address;
  std::vector<char> bytes(bytes_);
  const std::vector<int64_t> layouts = this->layouts();
  put(bytes, items_.offset, plan_.items.data(), static_cast<int64_t>(plan_.items.size()));
  put(bytes, layouts_.offset, layouts.data(), static_cast<int64_t>(layouts.size()));
  std::fill_n(bytes.begin() + fresh_.offset, plan_.tensors.size(), char(true));
  known_tensors_ = {std::vector<char>(tensors_.bytes)};
  known_live_ = {std::vector<char>(live_.bytes)};
  known_gradients_ = {std::vector<char>(gradients_.bytes)};
  known_courses_ = {std::vector<char>(courses_.bytes)};
  return bytes;
}

std::vector<int> CudaStepper::judged() const {
  std::vector<int> out;
  for (size_t i = 0; i < stepped_.size(); ++i)
    if (stepped_[i]) out.push_back(static_cast<int>(i));
  return out;
}

// ---------------------------------------------------------------- a step

void CudaStepper::step(cudaStream_t stream, const std::vector<int>& group_numbers, const Scaling& scaling) {
  begin(stream, group_numbers);
  launch_all(stream, scaling);
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    Tensor& t = plan_.tensors[i];
    stepped_[i] = t.active && t.projected;
    if (!t.active || plan_.live[t.group].on_device) continue;
    if (t.step) *t.step += 1;
    t.first = false;
  }
}

void CudaStepper::square_sum(cudaStream_t stream, const std::vector<int>& group_numbers) {
  begin(stream, group_numbers);
  each_kind([&](Dtype d, Family f, const Kind&) { launch(Kernel::square_sum, d, f, stream); });
  check(add_up(in<double>(square_sums_), static_cast<int>(plan_.tensors.size()), in<double>(square_sum_), stream),
        "launching add_up");
  launches_.push_back("add_up");
}

// Has the device know all that the launches to come will ask for.
void CudaStepper::begin(cudaStream_t stream, const std::vector<int>& group_numbers) {
  capturing_ = is_captured(stream);
  if (capturing_) check_capturable(group_numbers);
  launches_.clear();
  set_courses();
  upload(stream);
}

bool CudaStepper::is_captured(cudaStream_t stream) const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

void CudaStepper::check_capturable(const std::vector<int>& group_numbers) const {
  for (const Tensor& t : plan_.tensors)
    if (t.active && !plan_.live[t.group].capturable)
      throw std::runtime_error(
          "onepass: the stream is being captured into a CUDA graph, but param group " +
          std::to_string(group_numbers[t.group]) +
          " has capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True");
}

// The scalars of every tensor. A capturable tensor's are worked out on the device, for the tensor alone.
void CudaStepper::set_courses() {
  keys_.clear();
  scalars_.clear();
  const int count = static_cast<int>(plan_.tensors.size());
  courses_in_memory_ = false;
  for (int i = 0; i < count; ++i) {
    const Tensor& t = plan_.tensors[i];
    gradient_[i] = !t.active ? nullptr : t.g.data ? t.g.data : &no_elements;
    if (!t.active) continue;
    const bool live = plan_.live[t.group].on_device;
    course_[i] = live ? i : course_of(t, t.step ? *t.step + 1 : 0);
    courses_in_memory_ |= live || course_[i] >= max_courses;
  }
  if (!courses_in_memory_) return;
  for (int i = 0; i < count; ++i)
    if (plan_.tensors[i].active && !plan_.live[plan_.tensors[i].group].on_device) course_[i] += count;
}

int CudaStepper::course_of(const Tensor& t, float count) {
  const Key key{t.group, count, t.first, t.negated};
  // From the end: tensors mostly share what their neighbour has.
  for (int i = static_cast<int>(keys_.size()) - 1; i >= 0; --i)
    if (keys_[i] == key) return i;
  Hyper h = plan_.hypers[t.group];
  if (t.negated) h.grad_scale = -h.grad_scale;
  keys_.push_back(key);
  scalars_.push_back(scalars_of(h, plan_.sgd, count, t.first && plan_.lazy_buffer));
  return static_cast<int>(keys_.size()) - 1;
}

DeviceTensor CudaStepper::describe(int i) const {
  const Tensor& t = plan_.tensors[i];
  const bool live = plan_.live[t.group].on_device;
  DeviceTensor d;
  std::memset(&d, 0, sizeof d);  // padding too: the bytes are compared
  d.p = t.p.data;
  for (int j = 0; j < max_moments; ++j) d.moment[j] = t.moment[j].data;
  d.step = live ? t.step : nullptr;
  d.gate_counter = t.gate_counter;
  d.layout = t.packed ? nullptr : in<int64_t>(layouts_) + layout_at_[i];
  d.rows = t.rows, d.length = t.length;
  d.first_item = t.first_item, d.first_coefficient = t.first_coefficient;
  d.items = static_cast<int>(t.items);
  d.dims = static_cast<int>(t.shape.size());
  d.kind = kind_of(t.dtype, plan_.family(t.group));
  d.course = course_[i];
  d.live = live ? t.group : -1;
  d.projected = t.projected;
  d.speculates = plan_.speculates(t);
  d.rows_fit = t.length <= longest_row(t, shape_.room_bytes);
  d.negated = live && t.negated, d.first = live && t.first;
  return d;
}

void CudaStepper::Mirror::put(int64_t at, const void* from, int64_t count) {
  if (std::memcmp(bytes.data() + at, from, count) == 0) return;
  std::memcpy(bytes.data() + at, from, count);
  begin = begin == end ? at : std::min(begin, at);
  end = std::max(end, at + count);
}

// Sends the device what it does not know yet. Mostly nothing.
void CudaStepper::upload(cudaStream_t stream) {
  const int count = static_cast<int>(plan_.tensors.size());
  for (size_t g = 0; g < plan_.live.size(); ++g)
    if (plan_.live[g].on_device) known_live_.put(g * sizeof(LiveHyper), &plan_.live[g], sizeof(LiveHyper));
  for (int i = 0; i < count; ++i) {
    if (gradients_in_memory_) known_gradients_.put(i * sizeof(void*), &gradient_[i], sizeof(void*));
    const Tensor& t = plan_.tensors[i];
    if (!t.active) continue;
    const DeviceTensor d = describe(i);
    known_tensors_.put(i * sizeof d, &d, sizeof d);
    if (!courses_in_memory_ || course_[i] < count) continue;
    alignas(16) unsigned char course[course_bytes] = {};
    launcher(t.dtype, plan_.family(t.group)).write_course(scalars_[course_[i] - count], course);
    known_courses_.put(static_cast<int64_t>(course_[i]) * course_bytes, course, course_bytes);
  }
  known_gradients_.captured |= capturing_ && gradients_in_memory_;  // a graph has gradients of its own
  send(live_, known_live_, stream);
  send(tensors_, known_tensors_, stream);
  send(gradients_, known_gradients_, stream);
  send(courses_, known_courses_, stream);
}

// From the first to the last word that differs.
void CudaStepper::send(const Section& s, Mirror& mirror, cudaStream_t stream) {
  mirror.captured |= capturing_ && mirror.begin < mirror.end;
  if (mirror.captured) mirror.begin = 0, mirror.end = s.bytes;
  const int64_t end = mirror.end;
  for (int64_t at = mirror.begin / 8 * 8; at < end; at += Parcel::max_words * 8) {
    Parcel parcel;
    parcel.to = in<uint64_t>(s) + at / 8;
    parcel.count = static_cast<int>((std::min<int64_t>(end - at, Parcel::max_words * 8) + 7) / 8);
    std::memcpy(parcel.word, mirror.bytes.data() + at, parcel.count * 8);
    check(cuda::send(parcel, stream), "launching carry");
    launches_.push_back("carry");
  }
  mirror.begin = mirror.end = 0;
}

// Calls launch(dtype, family, kind) for every kind of tensor that is to be stepped.
template <class Launch>
void CudaStepper::each_kind(const Launch& launch) const {
  Kind kinds[4][3] = {};
  for (const Tensor& t : plan_.tensors) {
    if (!t.active) continue;
    Kind& kind = kinds[static_cast<int>(t.dtype)][static_cast<int>(plan_.family(t.group))];
    kind.present |= t.items > 0;
    kind.gated |= t.projected;
    kind.measured |= t.projected && !plan_.speculates(t);
    kind.live |= plan_.live[t.group].on_device;
  }
  for (int d = 0; d < 4; ++d)
    for (int f = 0; f < 3; ++f)
      if (kinds[d][f].present || kinds[d][f].live) launch(Dtype(d), Family(f), kinds[d][f]);
}

void CudaStepper::launch_all(cudaStream_t stream, const Scaling& scaling) {
  each_kind([&](Dtype d, Family f, const Kind& kind) {
    auto run = [&](Kernel kernel) { launch(kernel, d, f, stream, scaling); };
    if (kind.live) run(Kernel::prepare);
    if (!kind.present) return;
    if (kind.measured) run(Kernel::measure);
    run(kind.gated ? Kernel::update : Kernel::step);
    if (kind.gated) run(Kernel::settle);
  });
}

void CudaStepper::launch(Kernel kernel, Dtype dtype, Family family, cudaStream_t stream, const Scaling& scaling) {
  Frame f{};
  f.scaling = scaling;
  f.items = in<Item>(items_);
  f.block_items = shape_.block_items;
  f.all_items = static_cast<int>(plan_.items.size());
  f.tensors = in<DeviceTensor>(tensors_);
  f.all_tensors = static_cast<int>(plan_.tensors.size());
  f.gradients = gradients_in_memory_ ? in<const void*>(gradients_) : nullptr;
  f.courses = courses_in_memory_ ? in<unsigned char>(courses_) : nullptr;
  f.live = in<LiveHyper>(live_);
  f.reports = in<Report>(reports_);
  f.coefficients = in<double>(coefficients_);
  f.verdicts = in<DeviceVerdict>(verdicts_);
  f.tickets = in<unsigned>(tickets_);
  f.fresh = in<bool>(fresh_);
  f.square_sums = in<double>(square_sums_);
  f.kind = kind_of(dtype, family);
  f.room_bytes = shape_.room_bytes;
  f.sgd = plan_.sgd, f.lazy_buffer = plan_.lazy_buffer;

  const ByValue values{scalars_.data(), courses_in_memory_ ? 0 : static_cast<int>(scalars_.size()), gradient_.data(),
                       gradients_in_memory_ ? 0 : static_cast<int>(gradient_.size())};
  const cudaError_t error = launcher(dtype, family).launch(kernel, f, values, blocks(kernel, dtype, family), stream);
  if (error != cudaSuccess) check(error, "launching", kernel_name(kernel, dtype, family).c_str());
  launches_.push_back(kernel_names[static_cast<int>(kernel)]);
}

// As many as the device holds at once, if there is work for them.
int CudaStepper::blocks(Kernel kernel, Dtype dtype, Family family) {
  int& known = blocks_[kind_of(dtype, family) * kernel_count + static_cast<int>(kernel)];
  if (known == 0) {
    int each = 0;
    check(launcher(dtype, family).blocks_per_multiprocessor(kernel, shape_.room_bytes, limits_.shared_per_block, &each),
          "reserving shared memory for", kernel_name(kernel, dtype, family).c_str());
    const int warp_items = static_cast<int>(plan_.items.size()) - shape_.block_items;
    const int wanted = std::max({shape_.block_items, (warp_items + warps - 1) / warps, 1});
    known = std::clamp(wanted, 1, std::max(1, each * limits_.multiprocessors));
  }
  return known;
}

void CudaStepper::check(cudaError_t error, const char* doing, const char* what) const {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it once more
  throw std::runtime_error(std::string("onepass: ") + doing + (*what ? " " : "") + what +
                           " on cuda:" + std::to_string(device_) + " failed: " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

}  // namespace onepass::cuda
