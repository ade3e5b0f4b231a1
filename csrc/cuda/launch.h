// The host's interface to the kernels of one dtype and rule; launch.cuh fills the table, one file for each dtype.
#pragma once

#include <cuda_runtime.h>

#include "plan.cuh"

namespace onepass::cuda {

enum class Kernel : int { device_scalars, step, gate_stats, update, decide, correct, square_sum };
constexpr int kernel_count = 7;
constexpr bool writes_elements(Kernel kernel) {
  return kernel == Kernel::step || kernel == Kernel::update || kernel == Kernel::correct;
}
constexpr const char* kernel_names[kernel_count] = {"device_scalars", "step",    "gate_stats", "update",
                                                    "decide",         "correct", "square_sum"};

// Kernel parameters of a launch beside the plan. No gradients, or no scalars: they are in device memory.
struct ByValue {
  const Scalars* scalars;
  int scalars_count;
  const void* const* gradients;
  int gradients_count;
};

struct Launcher {
  cudaError_t (*launch)(Kernel, const DevicePlan&, const ByValue&, int blocks, cudaStream_t);
  // Allows the kernel all shared memory that a block may have, as other plans launch it too, and returns
  // how many blocks with this plan's row cache fit a multiprocessor.
  cudaError_t (*blocks_per_multiprocessor)(Kernel, int row_cache_bytes, int most_shared_bytes, int* out);
  // Writes a KernelScalars as it is laid out in device memory.
  void (*write_scalars)(const Scalars&, unsigned char* to);
};

const Launcher& launcher(Kernel kernel, const KernelKey& key);

// Writes words to device memory.
cudaError_t launch_upload(const Chunk& chunk, cudaStream_t stream);

// Adds up `count` numbers, sets them to 0, and stores their sum.
cudaError_t add_up(double* numbers, int count, double* sum, cudaStream_t stream);

// Shared memory of a block: without the row cache, and with it for the kernels that have one.
int shared_storage_bytes();
inline int shared_bytes(Kernel kernel, int row_cache_bytes) {
  return shared_storage_bytes() + (kernel == Kernel::update ? row_cache_bytes : 0);
}

}  // namespace onepass::cuda
