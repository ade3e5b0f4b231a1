// One step on a CUDA device: which launches, with what arguments.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "launch.h"
#include "shape.h"

namespace onepass::cuda {

class CudaStepper {
 public:
  CudaStepper(Plan& plan, int device);

  // Device memory for the plan, and what it is to hold at first, if it starts at `address`.
  int64_t bytes() const { return bytes_; }
  std::vector<char> image(uint64_t address);

  // Launches a step of every active tensor on a stream of the plan's device, which is the current one; does not wait.
  // group_numbers: of the plan's groups, for messages.
  void step(cudaStream_t stream, const std::vector<int>& group_numbers, const Scaling& scaling);

  // Likewise, the sum of squares over the gradients of all active tensors, a double at `square_sum_at` of the memory.
  void square_sum(cudaStream_t stream, const std::vector<int>& group_numbers);
  int64_t square_sum_at() const { return square_sum_.offset; }

  // Where in the plan's memory the verdicts of its tensors begin, and which tensors have one of the last step.
  int64_t verdicts_at() const { return verdicts_.offset; }
  std::vector<int> judged() const;

  // The kernels of the last step in order, and how the plan is laid onto the device.
  const std::vector<const char*>& launches() const { return launches_; }
  const Shape& shape() const { return shape_; }
  bool capturing() const { return capturing_; }  // whether the last step was captured into a graph

 private:
  // A part of the plan's memory.
  struct Section {
    int64_t offset, bytes;
  };

  // What the device holds of a part, and which of it has changed since it was sent. Once some of it was sent in the
  // course of a capture, nobody here knows what the device holds: each replay writes it again. It is sent whole then,
  // in that capture and at every step from there on.
  struct Mirror {
    std::vector<char> bytes;
    int64_t begin = 0, end = 0;
    bool captured = false;

    void put(int64_t at, const void* from, int64_t count);
  };

  Section section(int64_t bytes);
  template <class T>
  T* in(const Section& s) const {
    return reinterpret_cast<T*>(address_ + s.offset);
  }
  void lay_out();
  std::vector<int64_t> layouts();

  void begin(cudaStream_t stream, const std::vector<int>& group_numbers);
  bool is_captured(cudaStream_t stream) const;
  void check_capturable(const std::vector<int>& group_numbers) const;
  void set_courses();
  int course_of(const Tensor& t, float count);
  DeviceTensor describe(int tensor) const;
  void upload(cudaStream_t stream);
  void send(const Section& s, Mirror& mirror, cudaStream_t stream);
  // What the tensors of one dtype and family that are to be stepped ask for.
  struct Kind {
    bool present, gated, measured, live;
  };
  template <class Launch>
  void each_kind(const Launch& launch) const;
  void launch_all(cudaStream_t stream, const Scaling& scaling);
  void launch(Kernel kernel, Dtype dtype, Family family, cudaStream_t stream, const Scaling& scaling = {});
  int blocks(Kernel kernel, Dtype dtype, Family family);
  // Throws if a call has failed; `doing` and `what` say which.
  void check(cudaError_t error, const char* doing, const char* what = "") const;

  Plan& plan_;
  int device_;
  Limits limits_;
  Shape shape_;
  uint64_t address_ = 0;
  int64_t bytes_ = 0;
  Section tensors_, items_, layouts_, live_, verdicts_, reports_, coefficients_, tickets_, gradients_, courses_;
  Section fresh_, square_sums_, square_sum_;
  std::vector<int64_t> layout_at_;  // of every tensor, in `layouts_`; -1 if it is packed

  // What a course is made of: tensors that share these share their scalars.
  struct Key {
    int group;
    float count;
    bool first, negated;
    bool operator==(const Key&) const = default;
  };
  std::vector<Key> keys_;
  std::vector<Scalars> scalars_;
  std::vector<int> course_;            // of every tensor
  std::vector<const void*> gradient_;  // of every tensor; null where it is not stepped
  std::vector<char> stepped_;
  bool capturing_ = false;

  bool gradients_in_memory_, courses_in_memory_;
  Mirror known_tensors_, known_live_, known_gradients_, known_courses_;
  std::vector<int> blocks_;  // of every kernel, 0 if not known
  std::vector<const char*> launches_;
};

}  // namespace onepass::cuda
