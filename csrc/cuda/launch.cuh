// Launchers of the kernels of one storage.
#pragma once

#include <array>

#include "kernels.cuh"
#include "launch.h"

namespace onepass::cuda {

template <class P, class M, class Rule>
struct LauncherOf {
  typedef void (*Function)(const KernelParams<Rule> __grid_constant__);
  static_assert(sizeof(KernelParams<Rule>) <= 32764, "the limit of a kernel's arguments");
  static_assert(sizeof(KernelScalars<Rule>) <= scalars_bytes);

  // Kernels that no plan asks for are not compiled: rules without moments have one storage of them, only those with
  // two have blocks, and `launcher` takes the kernels that write no elements from the storages with wide moments and
  // without random bits.
  static constexpr bool is_wide = std::is_same_v<M, typename WorkOf<P>::type>;
  static constexpr bool reads = is_wide && !std::is_same_v<P, Stochastic>;
  static constexpr bool steps = is_wide || Rule::moments > (std::is_same_v<M, ByteMoment> ? 1 : 0);

  static Function function(Kernel kernel) {
    if constexpr (reads) {
      if (kernel == Kernel::device_scalars) return device_scalars<P, M, Rule>;
      if (kernel == Kernel::square_sum) return square_sum<P, M, Rule>;
    }
    if constexpr (steps)
      if (kernel == Kernel::step) return step<P, M, Rule>;
    if constexpr (steps && Rule::moments > 0) {
      if constexpr (reads) {
        if (kernel == Kernel::gate_stats) return gate_stats<P, M, Rule>;
        if (kernel == Kernel::decide) return decide<P, M, Rule>;
      }
      if (kernel == Kernel::update) return update<P, M, Rule>;
      if (kernel == Kernel::correct) return correct<P, M, Rule>;
    }
    return nullptr;
  }

  static cudaError_t launch(Kernel kernel, const DevicePlan& plan, const ByValue& values, int blocks,
                            cudaStream_t stream) {
    KernelParams<Rule> params{plan, {}, {}};
    for (int i = 0; i < values.scalars_count; ++i) params.scalars[i] = kernel_scalars<Rule>(values.scalars[i]);
    for (int i = 0; i < values.gradients_count; ++i) params.gradient[i] = values.gradients[i];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(block_size);
    config.dynamicSmemBytes = shared_bytes(kernel, plan.row_cache_bytes);
    config.stream = stream;
    return cudaLaunchKernelEx(&config, function(kernel), params);
  }

  static cudaError_t blocks_per_multiprocessor(Kernel kernel, int row_cache_bytes, int most_shared_bytes, int* out) {
    const int bytes = shared_bytes(kernel, row_cache_bytes);
    const cudaError_t error =
        cudaFuncSetAttribute(function(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared_bytes);
    if (error != cudaSuccess) return error;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(out, function(kernel), block_size, bytes);
  }

  static void write_scalars(const Scalars& s, unsigned char* to) {
    *reinterpret_cast<KernelScalars<Rule>*>(to) = kernel_scalars<Rule>(s);
  }

  static constexpr Launcher launcher() { return {launch, blocks_per_multiprocessor, write_scalars}; }
};

template <class P, class M, class... Rule>
constexpr std::array<Launcher, sizeof...(Rule)> launchers_of(const std::tuple<Rule...>*) {
  return {LauncherOf<P, M, Rule>::launcher()...};
}

// In the order of RuleId.
template <class P, class M>
struct Launchers {
  static constexpr std::array<Launcher, rule_count> of =
      launchers_of<P, M>(static_cast<const Rules<typename WorkOf<P>::type>*>(nullptr));
};

}  // namespace onepass::cuda
