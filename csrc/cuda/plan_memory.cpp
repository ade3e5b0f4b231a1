// The plan's device memory: its regions, its initial content, and uploads of what has changed.
#include "executor.h"

#include <algorithm>
#include <cstring>

namespace onepass::cuda {

namespace {

template <class T>
void put(std::vector<char>& bytes, int64_t offset, const T* from, int64_t count) {
  if (count) std::memcpy(bytes.data() + offset, from, count * sizeof(T));
}

}  // namespace

CudaExecutor::Region CudaExecutor::region(int64_t bytes) {
  const Region s{bytes_, (bytes + 7) / 8 * 8};
  bytes_ += (bytes + 255) / 256 * 256;
  return s;
}

void CudaExecutor::lay_out() {
  const int64_t tensors = static_cast<int64_t>(plan_.tensors.size()), items = static_cast<int64_t>(plan_.items.size());
  gradients_in_memory_ = tensors > max_gradients;
  tensors_ = region(tensors * sizeof(DeviceTensor));
  items_ = region(items * sizeof(DeviceItem));
  layouts_ = region(static_cast<int64_t>(layouts().size()) * sizeof(int64_t));
  hypers_ = region(tensors * sizeof(DeviceHyper));
  verdicts_ = region(tensors * sizeof(Verdict));
  stats_ = region(tensors * sizeof(TensorStats));
  row_sums_ = region(plan_.split_rows * sizeof(RowSums));
  row_stats_ = region(items * sizeof(RowStats));
  coefficients_ = region(plan_.coefficients * sizeof(double));
  arrivals_ = region(tensors * sizeof(unsigned));
  corrections_ = region(storage_count * tensors * sizeof(Correction));
  corrected_ = region(storage_count * 2 * sizeof(unsigned));
  first_steps_ = region(tensors * sizeof(bool));
  square_sums_ = region(tensors * sizeof(double));
  square_sum_ = region(sizeof(double));
  gradients_ = region(gradients_in_memory_ ? tensors * sizeof(void*) : 0);
  scalars_memory_ = region(2 * tensors * scalars_bytes);  // a tensor's own, then those that are shared
  scalars_index_.resize(tensors);
  gradient_.resize(tensors);
  stepped_.resize(tensors);
}

// The items as the device reads them.
std::vector<DeviceItem> CudaExecutor::items() const {
  std::vector<DeviceItem> all;
  all.reserve(plan_.items.size());
  for (const WorkItem& item : plan_.items) {
    const Tensor& t = plan_.tensors[item.tensor];
    if (item.whole_rows(t))
      all.push_back({item.tensor, static_cast<int>(item.rows), item.row});
    else
      all.push_back({item.tensor, -static_cast<int>(item.end - item.begin), item.row * t.length + item.begin});
  }
  return all;
}

// Sizes and strides of the tensors that are not packed.
std::vector<int64_t> CudaExecutor::layouts() {
  std::vector<int64_t> all;
  layout_at_.clear();
  for (const Tensor& t : plan_.tensors) {
    layout_at_.push_back(t.packed ? -1 : static_cast<int64_t>(all.size()));
    if (t.packed) continue;
    all.insert(all.end(), t.shape.begin(), t.shape.end());
    for (const View* view : {&t.p, &t.g, &t.moment[0], &t.moment[1], &t.remainder})
      all.insert(all.end(), view->strides.begin(), view->strides.end());
  }
  return all;
}

std::vector<char> CudaExecutor::initial_bytes(uint64_t address) {
  address_ = address;
  std::vector<char> bytes(bytes_);
  const std::vector<int64_t> layouts = this->layouts();
  const std::vector<DeviceItem> items = this->items();
  put(bytes, items_.offset, items.data(), static_cast<int64_t>(items.size()));
  put(bytes, layouts_.offset, layouts.data(), static_cast<int64_t>(layouts.size()));
  std::fill_n(bytes.begin() + first_steps_.offset, plan_.tensors.size(), char(true));
  shadow_tensors_ = {std::vector<char>(tensors_.bytes)};
  shadow_hypers_ = {std::vector<char>(hypers_.bytes)};
  shadow_gradients_ = {std::vector<char>(gradients_.bytes)};
  shadow_scalars_ = {std::vector<char>(scalars_memory_.bytes)};
  shadow_corrected_ = {std::vector<char>(corrected_.bytes)};
  return bytes;
}

DeviceTensor CudaExecutor::describe(int i) const {
  const Tensor& t = plan_.tensors[i];
  const bool on_device = plan_.device_hypers[t.group].on_device;
  DeviceTensor d;
  std::memset(&d, 0, sizeof d);  // padding too: the bytes are compared
  d.p = t.p.data;
  for (int j = 0; j < max_moments; ++j) d.moment[j] = t.moment[j].data, d.scale[j] = t.scale[j];
  d.remainder = t.remainder.data;
  d.step = on_device ? t.step : nullptr;
  d.gate_counter = t.gate_counter;
  d.layout = t.packed ? nullptr : in<int64_t>(layouts_) + layout_at_[i];
  d.rows = t.rows, d.length = t.length, d.whole_length = t.whole_length;
  d.whole_place = t.whole_place();
  d.split = t.split;
  d.first_split_row = t.first_split_row;
  d.first_coefficient = t.first_coefficient;
  d.first_item = static_cast<int>(t.first_item), d.items = static_cast<int>(t.items);
  d.number = t.number;
  d.dims = static_cast<uint8_t>(t.shape.size());
  d.key = static_cast<uint8_t>(plan_.key(t).index());
  d.scalars_index = scalars_index_[i];
  d.hyper_index = on_device ? t.group : -1;
  d.projected = t.projected;
  d.speculates = plan_.speculates(t);
  d.deferred = d.speculates && !plan_.predicts(t);
  d.row_cache = row_cache_of(t, layout_.row_cache_bytes);
  d.wide_gradient = t.wide_gradient;
  d.negated = on_device && t.negated, d.first_step = on_device && t.first_step;
  return d;
}

void CudaExecutor::ShadowBuffer::set(int64_t at, const void* from, int64_t count) {
  if (std::memcmp(bytes.data() + at, from, count) == 0) return;
  std::memcpy(bytes.data() + at, from, count);
  begin = begin == end ? at : std::min(begin, at);
  end = std::max(end, at + count);
}

// Uploads what has changed since the last step: mostly nothing.
void CudaExecutor::upload_changes(cudaStream_t stream) {
  const int count = static_cast<int>(plan_.tensors.size());
  for (size_t g = 0; g < plan_.device_hypers.size(); ++g)
    if (plan_.device_hypers[g].on_device)
      shadow_hypers_.set(g * sizeof(DeviceHyper), &plan_.device_hypers[g], sizeof(DeviceHyper));
  for (int i = 0; i < count; ++i) {
    if (gradients_in_memory_) shadow_gradients_.set(i * sizeof(void*), &gradient_[i], sizeof(void*));
    const Tensor& t = plan_.tensors[i];
    if (!t.active) continue;
    const DeviceTensor d = describe(i);
    shadow_tensors_.set(i * sizeof d, &d, sizeof d);
    if (!scalars_in_memory_ || scalars_index_[i] < count) continue;
    alignas(16) unsigned char scalars[scalars_bytes] = {};
    launcher(Kernel::device_scalars, plan_.key(t)).write_scalars(scalars_[scalars_index_[i] - count], scalars);
    shadow_scalars_.set(static_cast<int64_t>(scalars_index_[i]) * scalars_bytes, scalars, scalars_bytes);
  }
  shadow_gradients_.captured |= capturing_ && gradients_in_memory_;  // a graph has gradients of its own
  upload(hypers_, shadow_hypers_, stream);
  upload(tensors_, shadow_tensors_, stream);
  upload(gradients_, shadow_gradients_, stream);
  upload(scalars_memory_, shadow_scalars_, stream);
  upload(corrected_, shadow_corrected_, stream);
}

// From the first to the last word that differs.
void CudaExecutor::upload(const Region& region, ShadowBuffer& shadow, cudaStream_t stream) {
  shadow.captured |= capturing_ && shadow.begin < shadow.end;
  if (shadow.captured) shadow.begin = 0, shadow.end = region.bytes;
  const int64_t end = shadow.end;
  for (int64_t at = shadow.begin / 8 * 8; at < end; at += Chunk::max_words * 8) {
    Chunk chunk;
    chunk.to = in<uint64_t>(region) + at / 8;
    chunk.count = static_cast<int>((std::min<int64_t>(end - at, Chunk::max_words * 8) + 7) / 8);
    std::memcpy(chunk.word, shadow.bytes.data() + at, chunk.count * 8);
    check(launch_upload(chunk, stream), "launching upload");
    launches_.push_back("upload");
  }
  shadow.begin = shadow.end = 0;
}

}  // namespace onepass::cuda
