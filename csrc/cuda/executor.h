// One step on a CUDA device: the memory of the plan, and the launches with their parameters.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "launch.h"
#include "launch_layout.h"

namespace onepass::cuda {

class CudaExecutor {
 public:
  CudaExecutor(Plan& plan, int device);

  // The size of the plan's device memory, and its initial content if it starts at `address`.
  int64_t bytes() const { return bytes_; }
  std::vector<char> initial_bytes(uint64_t address);

  // Launch one step of every active tensor on a stream of the plan's device, which is the current one, and do not wait:
  // these calls, in this order. group_numbers: of the plan's groups, for messages.
  void begin(cudaStream_t stream, const std::vector<int>& group_numbers, const Scaling& scaling);
  void gate_stats();
  void update();
  void decide();
  void correct();

  // Likewise, the sum of squares over the gradients of all active tensors, a double at `square_sum_at` of the memory;
  // or without `total`, that of each tensor at `square_sums_at`.
  void square_sum(cudaStream_t stream, const std::vector<int>& group_numbers, bool total);
  int64_t square_sum_at() const { return square_sum_.offset; }
  int64_t square_sums_at() const { return square_sums_.offset; }

  // Offsets in the plan's memory: of the statistics and the verdicts of its tensors, the sums of split rows, and the
  // coefficients of all rows. The tensors that have a verdict of the last step.
  int64_t stats_at() const { return stats_.offset; }
  int64_t row_sums_at() const { return row_sums_.offset; }
  int64_t coefficients_at() const { return coefficients_.offset; }
  int64_t verdicts_at() const { return verdicts_.offset; }
  std::vector<int> decided() const;

  // Where the bools begin that say of each tensor whether no step that the device counts was taken yet.
  int64_t first_steps_at() const { return first_steps_.offset; }

  // The kernels of the last step in order, and the launch layout.
  const std::vector<const char*>& launches() const { return launches_; }
  const LaunchLayout& layout() const { return layout_; }
  bool capturing() const { return capturing_; }  // whether the last step was captured into a graph

 private:
  // A region of the plan's memory.
  struct Region {
    int64_t offset, bytes;
  };

  // The host's copy of a region, and the range that has changed since its last upload. An upload that was captured into
  // a graph is repeated by each replay, so that the device's content is unknown from then on: the region is uploaded
  // whole, in that capture and at every later step.
  struct ShadowBuffer {
    std::vector<char> bytes;
    int64_t begin = 0, end = 0;
    bool captured = false;

    void set(int64_t at, const void* from, int64_t count);
  };

  Region region(int64_t bytes);
  template <class T>
  T* in(const Region& s) const {
    return reinterpret_cast<T*>(address_ + s.offset);
  }
  void lay_out();
  std::vector<DeviceItem> items() const;
  std::vector<int64_t> layouts();

  void bring_up_to_date(cudaStream_t stream, const std::vector<int>& group_numbers, const Scaling& scaling);
  bool is_captured(cudaStream_t stream) const;
  void check_capturable(const std::vector<int>& group_numbers) const;
  void set_scalars();
  int scalars_index_of(const Tensor& t, float count);
  DeviceTensor describe(int tensor) const;
  void upload_changes(cudaStream_t stream);
  void upload(const Region& region, ShadowBuffer& shadow, cudaStream_t stream);
  // Which kernels the active tensors of one key need.
  struct Work {
    bool elementwise, gated, gate_stats, exchanged, device_scalars, gradients;
  };
  void find_work();
  void launch_where(bool Work::* needed, Kernel kernel);
  void launch(Kernel kernel, const KernelKey& key);
  int blocks(Kernel kernel, const KernelKey& key);
  // Throws if a call has failed; `doing` and `what` say which.
  void check(cudaError_t error, const char* doing, const char* what = "") const;

  Plan& plan_;
  int device_;
  Limits limits_;
  LaunchLayout layout_;
  uint64_t address_ = 0;
  int64_t bytes_ = 0;
  Region tensors_, items_, layouts_, hypers_, verdicts_, stats_, row_sums_, row_stats_, coefficients_, arrivals_,
      gradients_, scalars_memory_;
  Region first_steps_, square_sums_, square_sum_, corrections_, corrected_;
  std::vector<int64_t> layout_at_;  // of every tensor, in `layouts_`; -1 if it is packed

  // Tensors with equal keys have equal scalars, narrowed to one dtype.
  struct Key {
    int group;
    float count;
    bool first_step, negated, is_double;
    bool operator==(const Key&) const = default;
  };
  std::vector<Key> keys_;
  std::vector<Scalars> scalars_;
  std::vector<int> scalars_index_;     // of every tensor
  std::vector<const void*> gradient_;  // of every tensor; null where it is not stepped
  std::vector<char> stepped_;
  bool capturing_ = false;
  Work work_[storage_count * rule_count] = {};  // of the present step, as its stream and its scaling
  cudaStream_t stream_ = nullptr;
  Scaling scaling_;

  bool gradients_in_memory_, scalars_in_memory_;
  ShadowBuffer shadow_tensors_, shadow_hypers_, shadow_gradients_, shadow_scalars_, shadow_corrected_;
  std::vector<int> blocks_;  // of every kernel, 0 if not known
  std::vector<const char*> launches_;
};

}  // namespace onepass::cuda
