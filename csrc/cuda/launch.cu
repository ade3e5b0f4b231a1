#include "launch.h"

#include "crew.cuh"
#include "memory.cuh"

namespace onepass::cuda {

extern const Launcher *const launchers_f32, *const launchers_f64, *const launchers_bf16, *const launchers_f16;

const Launcher& launcher(Dtype dtype, Family family) {
  const Launcher* const of_dtype[] = {launchers_f32, launchers_f64, launchers_bf16, launchers_f16};
  return of_dtype[static_cast<int>(dtype)][static_cast<int>(family)];
}

__global__ void __launch_bounds__(block_size) carry(const Parcel __grid_constant__ parcel) {
  for (int i = threadIdx.x; i < parcel.count; i += block_size) store(parcel.to + i, parcel.word[i], of_plan);
}

cudaError_t send(const Parcel& parcel, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(block_size);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, carry, parcel);
}

// In one order, whoever wrote the numbers. They are 0 again for tensors that the next sum leaves out.
__global__ void __launch_bounds__(block_size) sum_of(double* numbers, int count, double* sum) {
  Board& board = *reinterpret_cast<Board*>(onepass_room);
  RowSums own;
  for (int i = threadIdx.x; i < count; i += block_size) {
    own.gg += load(numbers + i, of_reports);
    store(numbers + i, 0.0, of_reports);
  }
  own = Block::sum(own, block_size, board);
  if (Block::rank() == 0) store(sum, own.gg, of_reports);
}

cudaError_t add_up(double* numbers, int count, double* sum, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(1);
  config.blockDim = dim3(block_size);
  config.dynamicSmemBytes = board_bytes();
  config.stream = stream;
  return cudaLaunchKernelEx(&config, sum_of, numbers, count, sum);
}

int board_bytes() {
  return (sizeof(Board) + 15) / 16 * 16;
}

}  // namespace onepass::cuda
