// Kernels that test the emulation: valid CUDA, which nvcc compiles too.
#include <cuda_runtime.h>

namespace selftest {

constexpr unsigned all = 0xffffffffu;

extern __shared__ __align__(16) unsigned char onepass_shared[];

template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
  for (int lanes = 16; lanes; lanes /= 2) x += __shfl_xor_sync(all, x, lanes);
  return x;
}

// Each block sums one row.
template <bool barrier>
__global__ void __launch_bounds__(1024) sum_rows(const float* x, float* sums, int length) {
  float* partial = reinterpret_cast<float*>(onepass_shared);
  float sum = 0;
  for (int i = threadIdx.x; i < length; i += blockDim.x) sum += x[size_t(blockIdx.x) * length + i];
  sum = sum_of_warp(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  if (barrier) __syncthreads();
  if (threadIdx.x < 32) {
    sum = sum_of_warp(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.f);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
  }
}

// Reverses the order of each warp's numbers.
template <bool barrier>
__global__ void reverse_warps(int* x) {
  int* room = reinterpret_cast<int*>(onepass_shared);
  room[threadIdx.x] = x[threadIdx.x];
  if (barrier) __syncwarp();
  x[threadIdx.x] = room[threadIdx.x ^ 31];
}

// The rank of each thread of the grid in the order of execution.
__global__ void come(unsigned* count, unsigned* place) {
  place[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1u);
}

__global__ void copy_room(unsigned char* to, int at) {
  to[blockIdx.x * blockDim.x + threadIdx.x] = onepass_shared[at + threadIdx.x];
  onepass_shared[threadIdx.x] = 0;
}

__global__ void one_warp_waits() {
  if (threadIdx.x < 32) __syncthreads();
}
__global__ void one_thread_leaves(int* x) {
  if (threadIdx.x != 5) x[threadIdx.x] = __shfl_sync(all, 1, 0);
}
__global__ void half_a_mask(int* x) {
  x[threadIdx.x] = __shfl_sync(0xffffu, 1, 0);
}

__global__ void copy_fours(const float* from, float4* to) {
  to[threadIdx.x] = *reinterpret_cast<const float4*>(from + 4 * threadIdx.x);
}

// Counts wrong exchanges of a type.
template <class T>
__device__ __noinline__ unsigned wrong_exchanges() {
  const int lane = threadIdx.x % 32;
  const T mine = T(threadIdx.x) + T(0.25), first = T(threadIdx.x - lane) + T(0.25);
  unsigned wrong = __shfl_xor_sync(all, mine, 5) != T(threadIdx.x ^ 5) + T(0.25);
  for (int i = 0; i < 32; ++i) wrong += __shfl_sync(all, mine, i) != first + T(i);
  return wrong;
}
__global__ void exchange(unsigned* wrong) {
  atomicAdd(wrong, wrong_exchanges<int>() + wrong_exchanges<unsigned>() + wrong_exchanges<float>() +
                       wrong_exchanges<double>() + wrong_exchanges<long long>());
  const unsigned lane = threadIdx.x % 32, odd_warp = threadIdx.x / 32 % 2;
  atomicAdd(wrong, unsigned(__ballot_sync(all, lane < 5 && odd_warp) != (odd_warp ? 0x1fu : 0u)));
  atomicAdd(wrong, unsigned(__any_sync(all, lane == 7 && odd_warp) != int(odd_warp)));
  __threadfence();
}

struct Large {
  int x[8000];
};
__global__ void pick(const Large __grid_constant__ from, const int* scale, int* to) {
  to[threadIdx.x] = from.x[threadIdx.x] * __ldcg(scale);
}

__global__ void shuffle_often(float* x, int times) {
  float sum = float(threadIdx.x);
  for (int i = 0; i < times; ++i) sum = 0.5f * __shfl_xor_sync(all, sum, 1 + i % 16);
  x[threadIdx.x] = sum;
}

template <class... A, class... B>
cudaError_t launch(unsigned grid, unsigned block, size_t shared_bytes, void (*kernel)(A...), B... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// Makes nvcc instantiate all templates.
inline cudaError_t launch_all() {
  float* x = nullptr;
  int* n = nullptr;
  unsigned* u = nullptr;
  int blocks = 0;
  cudaFuncSetAttribute(sum_rows<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, sum_rows<true>, 64, size_t(65536));
  launch(1, 32, 128, sum_rows<true>, x, x, 1);
  launch(1, 32, 128, sum_rows<false>, x, x, 1);
  launch(1, 32, 128, reverse_warps<true>, n);
  launch(1, 32, 128, reverse_warps<false>, n);
  launch(1, 32, 0, pick, Large{}, n, n);
  launch(1, 32, 0, exchange, u);
  return cudaGetLastError();
}

}  // namespace selftest
