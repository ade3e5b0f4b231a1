// The kernels of one dtype and family as the host launches them; launch.cuh fills the table, one file for each dtype.
#pragma once

#include <cuda_runtime.h>

#include "plan.cuh"

namespace onepass::cuda {

enum class Kernel : int { prepare, step, measure, update, settle, square_sum };
constexpr int kernel_count = 6;
constexpr const char* kernel_names[kernel_count] = {"prepare", "step", "measure", "update", "settle", "square_sum"};

// What comes with the arguments of a launch. No gradients, or no scalars: they are in device memory.
struct ByValue {
  const Scalars* scalars;
  int scalars_count;
  const void* const* gradients;
  int gradients_count;
};

struct Launcher {
  cudaError_t (*launch)(Kernel, const Frame&, const ByValue&, int blocks, cudaStream_t);
  // Allows the kernel all shared memory that a block may have, as other plans have launches of it too, and tells how
  // many blocks with this plan's share a multiprocessor holds.
  cudaError_t (*blocks_per_multiprocessor)(Kernel, int room_bytes, int most_shared_bytes, int* out);
  // A course as it lies in device memory.
  void (*write_course)(const Scalars&, unsigned char* to);
};

const Launcher& launcher(Dtype dtype, Family family);

// Writes words to device memory.
cudaError_t send(const Parcel& parcel, cudaStream_t stream);

// Adds up `count` numbers, sets them to 0, and stores their sum.
cudaError_t add_up(double* numbers, int count, double* sum, cudaStream_t stream);

// Shared memory of a block: beside the room for rows, and with it where the kernel holds rows.
int board_bytes();
inline int shared_bytes(Kernel kernel, int room_bytes) {
  return board_bytes() + (kernel == Kernel::update ? room_bytes : 0);
}

}  // namespace onepass::cuda
