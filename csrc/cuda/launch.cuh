// Launchers of the kernels of one dtype.
#pragma once

#include "kernels.cuh"
#include "launch.h"

namespace onepass::cuda {

template <class P, class Rule>
struct LauncherOf {
  typedef void (*Function)(const Arguments<Rule> __grid_constant__);
  static_assert(sizeof(Arguments<Rule>) <= 32764, "the limit of a kernel's arguments");
  static_assert(sizeof(Course<Rule>) <= course_bytes);

  static Function function(Kernel kernel) {
    if (kernel == Kernel::prepare) return prepare<P, Rule>;
    if (kernel == Kernel::step) return step<P, Rule>;
    if (kernel == Kernel::square_sum) return square_sum<P, Rule>;
    if constexpr (Rule::moments > 0) {
      if (kernel == Kernel::measure) return measure<P, Rule>;
      if (kernel == Kernel::update) return update<P, Rule>;
      if (kernel == Kernel::settle) return settle<P, Rule>;
    }
    return nullptr;
  }

  static cudaError_t launch(Kernel kernel, const Frame& frame, const ByValue& values, int blocks, cudaStream_t stream) {
    Arguments<Rule> a{frame, {}, {}};
    for (int i = 0; i < values.scalars_count; ++i) a.course[i] = course_of<Rule>(values.scalars[i]);
    for (int i = 0; i < values.gradients_count; ++i) a.gradient[i] = values.gradients[i];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(block_size);
    config.dynamicSmemBytes = shared_bytes(kernel, frame.room_bytes);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, function(kernel), a);
  }

  static cudaError_t blocks_per_multiprocessor(Kernel kernel, int room_bytes, int most_shared_bytes, int* out) {
    const int bytes = shared_bytes(kernel, room_bytes);
    const cudaError_t error =
        cudaFuncSetAttribute(function(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes);
    if (error != cudaSuccess) return error;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(out, function(kernel), block_size, bytes);
  }

  static void write_course(const Scalars& s, unsigned char* to) {
    *reinterpret_cast<Course<Rule>*>(to) = course_of<Rule>(s);
  }

  static constexpr Launcher launcher() { return {launch, blocks_per_multiprocessor, write_course}; }
};

// In the order of Family.
template <class P>
struct Launchers {
  typedef typename WorkOf<P>::type S;
  static constexpr Launcher of[3] = {LauncherOf<P, Adam<S>>::launcher(), LauncherOf<P, Sgd<S, true>>::launcher(),
                                     LauncherOf<P, Sgd<S, false>>::launcher()};
};

}  // namespace onepass::cuda
