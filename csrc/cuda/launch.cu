#include "launch.h"

#include "memory.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

// One for each storage, each in a file of its own.
extern const Launcher* const launchers_f32;
extern const Launcher* const launchers_f64;
extern const Launcher* const launchers_bf16;
extern const Launcher* const launchers_f16;
extern const Launcher* const launchers_master;
extern const Launcher* const launchers_stochastic;
extern const Launcher* const launchers_f32_short;
extern const Launcher* const launchers_bf16_short;
extern const Launcher* const launchers_master_short;
extern const Launcher* const launchers_stochastic_short;
extern const Launcher* const launchers_f32_blocks;
extern const Launcher* const launchers_bf16_blocks;
extern const Launcher* const launchers_master_blocks;
extern const Launcher* const launchers_stochastic_blocks;

const Launcher& launcher(Kernel kernel, const KernelKey& key) {
  // In the order of `storages`.
  const Launcher* const of_storage[] = {launchers_f32,           launchers_f64,
                                        launchers_bf16,          launchers_f16,
                                        launchers_master,        launchers_stochastic,
                                        launchers_f32_short,     launchers_bf16_short,
                                        launchers_master_short,  launchers_stochastic_short,
                                        launchers_f32_blocks,    launchers_bf16_blocks,
                                        launchers_master_blocks, launchers_stochastic_blocks};
  Storage storage = key.storage;
  if (!writes_elements(kernel)) {  // one for all that is read alike
    storage = storage.with_wide_moments();
    if (storage.stochastic()) storage.weight = Weight::plain;
  }
  return of_storage[index_of(storage)][static_cast<int>(key.rule)];
}

__global__ void __launch_bounds__(block_size) upload(const Chunk __grid_constant__ chunk) {
  for (int i = threadIdx.x; i < chunk.count; i += block_size) store(chunk.to + i, chunk.word[i], of_plan);
}

cudaError_t launch_upload(const Chunk& chunk, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(block_size);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, upload, chunk);
}

// In one fixed order. Resets the numbers, so that tensors that the next sum leaves out count as 0.
__global__ void __launch_bounds__(block_size) sum_of(double* numbers, int count, double* sum) {
  SharedStorage& shared = *reinterpret_cast<SharedStorage*>(onepass_shared);
  RowSums own;
  for (int i = threadIdx.x; i < count; i += block_size) {
    own.gg += load(numbers + i, of_stats);
    store(numbers + i, 0.0, of_stats);
  }
  own = BlockGroup::sum(own, block_size, shared);
  if (BlockGroup::rank() == 0) store(sum, own.gg, of_stats);
}

cudaError_t add_up(double* numbers, int count, double* sum, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(block_size);
  config.dynamicSmemBytes = shared_storage_bytes();
  config.stream = stream;
  return cudaLaunchKernelEx(&config, sum_of, numbers, count, sum);
}

int shared_storage_bytes() {
  return (sizeof(SharedStorage) + 15) / 16 * 16;
}

}  // namespace onepass::cuda
