#include "executor.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace onepass::cuda {

namespace {

constexpr const char* dtype_names[] = {"float32", "float64", "bfloat16", "float16"};
constexpr const char* weight_names[] = {"", " with a remainder", " rounded stochastically"};
constexpr const char* rule_names[] = {"Adam", "SGD with a buffer", "SGD"};

std::string kernel_name(Kernel kernel, const KernelKey& key) {
  return std::string(kernel_names[static_cast<int>(kernel)]) + " (" + dtype_names[static_cast<int>(key.storage.param)] +
         weight_names[static_cast<int>(key.storage.weight)] +
         (key.storage.blocks()                             ? ", moments in 8 bits"
          : key.storage == key.storage.with_wide_moments() ? ""
                                                           : ", moments in bfloat16") +
         ", " + rule_names[static_cast<int>(key.rule)] + ")";
}

// The address of the gradient of a tensor without elements. Null would mean no gradient, but such a step is counted.
constexpr char no_elements = 0;

}  // namespace

CudaExecutor::CudaExecutor(Plan& plan, int device)
    : plan_(plan), device_(device), blocks_(storage_count * rule_count * kernel_count) {
  auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, name, device), "asking for its limits");
    return value;
  };
  limits_ = {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
             attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin), attribute(cudaDevAttrReservedSharedMemoryPerBlock)};
  // The random bits of a split row go by a place that packed kernels do not find: they have no registers left for it.
  for (Tensor& t : plan.tensors) t.packed &= !(t.split && plan.draws(t));
  layout_ = launch_layout_of(plan, limits_, shared_storage_bytes());
  lay_out();
}

std::vector<int> CudaExecutor::decided() const {
  std::vector<int> out;
  for (size_t i = 0; i < stepped_.size(); ++i)
    if (stepped_[i]) out.push_back(static_cast<int>(i));
  return out;
}

// ---------------------------------------------------------------- a step

void CudaExecutor::begin(cudaStream_t stream, const std::vector<int>& group_numbers, const Scaling& scaling) {
  bring_up_to_date(stream, group_numbers, scaling);
  launch_where(&Work::device_scalars, Kernel::device_scalars);
}

void CudaExecutor::gate_stats() {
  launch_where(&Work::gate_stats, Kernel::gate_stats);
}

void CudaExecutor::update() {
  // If a later launch of the step fails, the next step empties the list of tensors to correct, which the correction
  // would have done.
  shadow_corrected_.end = corrected_.bytes;
  launch_where(&Work::elementwise, Kernel::step);
  launch_where(&Work::gated, Kernel::update);
}

void CudaExecutor::decide() {
  launch_where(&Work::exchanged, Kernel::decide);
}

void CudaExecutor::correct() {
  launch_where(&Work::gated, Kernel::correct);
  shadow_corrected_.end = 0;
  for (size_t i = 0; i < plan_.tensors.size(); ++i) {
    Tensor& t = plan_.tensors[i];
    stepped_[i] = t.active && t.projected;
    if (!t.active || plan_.device_hypers[t.group].on_device) continue;
    if (t.step) *t.step += 1;
    t.first_step = false;
  }
}

void CudaExecutor::square_sum(cudaStream_t stream, const std::vector<int>& group_numbers, bool total) {
  bring_up_to_date(stream, group_numbers, {});
  launch_where(&Work::gradients, Kernel::square_sum);
  if (!total) return;
  check(add_up(in<double>(square_sums_), static_cast<int>(plan_.tensors.size()), in<double>(square_sum_), stream),
        "launching add_up");
  launches_.push_back("add_up");
}

// Brings the device's copy of the plan up to date for the coming launches.
void CudaExecutor::bring_up_to_date(cudaStream_t stream, const std::vector<int>& group_numbers,
                                    const Scaling& scaling) {
  stream_ = stream, scaling_ = scaling;
  capturing_ = is_captured(stream);
  if (capturing_) check_capturable(group_numbers);
  launches_.clear();
  set_scalars();
  upload_changes(stream);
  find_work();
}

bool CudaExecutor::is_captured(cudaStream_t stream) const {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is being captured");
  return status != cudaStreamCaptureStatusNone;
}

void CudaExecutor::check_capturable(const std::vector<int>& group_numbers) const {
  for (const Tensor& t : plan_.tensors)
    if (t.active && !plan_.device_hypers[t.group].capturable)
      throw std::runtime_error(
          "onepass: the stream is being captured into a CUDA graph, but param group " +
          std::to_string(group_numbers[t.group]) +
          " has capturable=False: the step count and lr of this step would be replayed for ever; use capturable=True");
}

// The scalars of every tensor. Where the device counts the steps, it computes them, for each tensor alone.
void CudaExecutor::set_scalars() {
  keys_.clear();
  scalars_.clear();
  const int count = static_cast<int>(plan_.tensors.size());
  scalars_in_memory_ = false;
  for (int i = 0; i < count; ++i) {
    const Tensor& t = plan_.tensors[i];
    gradient_[i] = !t.active ? nullptr : t.g.data ? t.g.data : &no_elements;
    if (!t.active) continue;
    const bool on_device = plan_.device_hypers[t.group].on_device;
    scalars_index_[i] = on_device ? i : scalars_index_of(t, t.step ? *t.step + 1 : 0);
    scalars_in_memory_ |= on_device || scalars_index_[i] >= max_scalars;
  }
  if (!scalars_in_memory_) return;
  for (int i = 0; i < count; ++i)
    if (plan_.tensors[i].active && !plan_.device_hypers[plan_.tensors[i].group].on_device) scalars_index_[i] += count;
}

int CudaExecutor::scalars_index_of(const Tensor& t, float count) {
  const Key key{t.group, count, t.first_step, t.negated, t.storage.param == Dtype::f64};
  // From the end: tensors mostly share what their neighbour has.
  for (int i = static_cast<int>(keys_.size()) - 1; i >= 0; --i)
    if (keys_[i] == key) return i;
  Hyper h = plan_.hypers[t.group];
  if (t.negated) h.grad_scale = -h.grad_scale;
  keys_.push_back(key);
  scalars_.push_back(scalars_of(h, plan_.rule, count, t.first_step && plan_.lazy_buffer));
  return static_cast<int>(keys_.size()) - 1;
}

// Which kernels the step needs. square_sum reads the gradients of all tensors.
void CudaExecutor::find_work() {
  for (Work& work : work_) work = {};
  for (const Tensor& t : plan_.tensors) {
    if (!t.active) continue;
    Work& work = work_[plan_.key(t).index()];
    work.gradients |= t.items > 0;
    work.gated |= t.projected;
    work.gate_stats |= t.projected && !plan_.speculates(t);
    work.exchanged |= t.projected && plan_.exchanges;
    work.device_scalars |= plan_.device_hypers[t.group].on_device;
  }
  for (Work& work : work_) work.elementwise = work.gradients && !work.gated;
}

// Launches a kernel for every key that needs it.
void CudaExecutor::launch_where(bool Work::* needed, Kernel kernel) {
  for (const Storage& storage : storages)
    for (int r = 0; r < rule_count; ++r) {
      const KernelKey key{storage, RuleId(r)};
      if (work_[key.index()].*needed) launch(kernel, key);
    }
}

void CudaExecutor::launch(Kernel kernel, const KernelKey& key) {
  DevicePlan plan{};
  plan.scaling = scaling_;
  plan.items = in<DeviceItem>(items_);
  plan.block_items = layout_.block_items;
  plan.all_items = static_cast<int>(plan_.items.size());
  plan.tensors = in<DeviceTensor>(tensors_);
  plan.all_tensors = static_cast<int>(plan_.tensors.size());
  plan.gradients = gradients_in_memory_ ? in<const void*>(gradients_) : nullptr;
  plan.scalars = scalars_in_memory_ ? in<unsigned char>(scalars_memory_) : nullptr;
  plan.hypers = in<DeviceHyper>(hypers_);
  plan.row_stats = in<RowStats>(row_stats_);
  plan.coefficients = in<double>(coefficients_);
  plan.verdicts = in<Verdict>(verdicts_);
  plan.row_sums = in<RowSums>(row_sums_);
  plan.stats = plan_.exchanges ? in<TensorStats>(stats_) : nullptr;
  plan.arrivals = in<unsigned>(arrivals_);
  plan.corrections = in<Correction>(corrections_) + index_of(key.storage) * plan_.tensors.size();
  plan.corrected = in<unsigned>(corrected_) + index_of(key.storage) * 2;
  plan.first_steps = in<bool>(first_steps_);
  plan.square_sums = in<double>(square_sums_);
  plan.key = key.index();
  plan.row_cache_bytes = layout_.row_cache_bytes;
  plan.lazy_buffer = plan_.lazy_buffer;

  const ByValue values{scalars_.data(), scalars_in_memory_ ? 0 : static_cast<int>(scalars_.size()), gradient_.data(),
                       gradients_in_memory_ ? 0 : static_cast<int>(gradient_.size())};
  const cudaError_t error = launcher(kernel, key).launch(kernel, plan, values, blocks(kernel, key), stream_);
  if (error != cudaSuccess) check(error, "launching", kernel_name(kernel, key).c_str());
  launches_.push_back(kernel_names[static_cast<int>(kernel)]);
}

// As many as the device holds at once, if there is work for them.
int CudaExecutor::blocks(Kernel kernel, const KernelKey& key) {
  int& known = blocks_[key.index() * kernel_count + static_cast<int>(kernel)];
  if (known == 0) {
    int each = 0;
    check(launcher(kernel, key)
              .blocks_per_multiprocessor(kernel, layout_.row_cache_bytes, limits_.shared_per_block, &each),
          "reserving shared memory for", kernel_name(kernel, key).c_str());
    const int warp_items = static_cast<int>(plan_.items.size()) - layout_.block_items;
    const int wanted = std::max({layout_.block_items, (warp_items + warps - 1) / warps, 1});
    known = std::clamp(wanted, 1, std::max(1, each * limits_.multiprocessors));
  }
  return known;
}

void CudaExecutor::check(cudaError_t error, const char* doing, const char* what) const {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would report it once more
  throw std::runtime_error(std::string("onepass: ") + doing + (*what ? " " : "") + what +
                           " on cuda:" + std::to_string(device_) + " failed: " + cudaGetErrorName(error) + " (" +
                           cudaGetErrorString(error) + ")");
}

}  // namespace onepass::cuda
