// The part of CUDA that onepass' kernels and launches use, on a CPU, so that tests can run them unmodified without a
// GPU. The compiler must find this header before CUDA's own:
//
//     g++ -std=c++20 -Itests/emulated -Icsrc -x c++ -include cuda_runtime.h csrc/cuda/*.cu ...
//     (build.py has the whole command)
//
// Anything else of CUDA does not compile. The emulation cannot detect races between blocks (they run one at a time), a
// shuffle used as a memory fence, or the GPU's own rounding in functions such as sqrt.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "grid.h"

#define __global__
#define __device__
#define __host__
// Makes `extern __shared__ unsigned char onepass_shared[];`, outside of functions, the same array in every namespace.
#define __shared__ "C"
#define __noinline__  // empty, because libstdc++ uses __attribute__((__noinline__))
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
// Each thread copies its parameters: 0.2 us for 10 KB. If all kernels declare `const T __grid_constant__ x`, in this
// order, -D__grid_constant__='&' makes the threads share one copy.
#ifndef __grid_constant__
#define __grid_constant__
#endif

// Counts the bytes of the kernels' loads and stores.
#define ONEPASS_TRACE(operand, bytes, is_store) (emulated::traffic[operand][is_store] += (bytes))

// --- types, aligned as CUDA aligns them ---

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
  return {x, y};
}

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// --- in kernels ---

inline void __syncthreads() {
  emulated::wait(emulated::Place::syncthreads);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulated::check_mask(mask);
  emulated::wait(emulated::Place::syncwarp);
}

template <class T>
T __shfl_sync(unsigned mask, T x, int lane) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4);
  return emulated::value_of_lane(mask, x, lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int lane_mask) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4);
  return emulated::value_of_lane(mask, x, threadIdx.x ^ lane_mask);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulated::ballot(mask, predicate);
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned x) {
  for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) x = std::max(x, __shfl_xor_sync(mask, x, lane_mask));
  return x;
}
inline int __any_sync(unsigned mask, int predicate) {
  return emulated::ballot(mask, predicate) != 0;
}

namespace emulated {
// As far from the exact value as the PTX manual allows, and 0 for a subnormal one: the nearest float, the one above or
// below, chosen by the bits of the argument, or by `approximation_choice` if it is not negative.
extern int approximation_choice;
float approximate_reciprocal(float x);
float approximate_inverse_root(float x);
}  // namespace emulated

// One thread runs at a time.
inline void __threadfence() {}
inline unsigned atomicAdd(unsigned* to, unsigned x) {
  const unsigned before = *to;
  *to += x;
  return before;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}

// --- the runtime ---

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorUnknown = 999,
};
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
};
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

typedef struct CUstream_st* cudaStream_t;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* kernel, int threads,
                                                          size_t shared_bytes);

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  struct cudaLaunchAttribute* attrs;  // none is emulated
  unsigned numAttrs;
};

namespace emulated {
extern uint64_t traffic[16][2];  // bytes of each operand: loaded, stored
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread);
}  // namespace emulated

template <class... A>
cudaError_t cudaFuncSetAttribute(void (*kernel)(A...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... A>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(A...), int threads,
                                                          size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, reinterpret_cast<const void*>(kernel), threads,
                                                       shared_bytes);
}

template <class... A, class... B>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(A...), B&&... args) {
  static_assert((sizeof(std::decay_t<A>) + ... + 0) <= 32764, "a kernel's parameters take at most 32,764 bytes");
  std::tuple<std::decay_t<A>...> copies(std::forward<B>(args)...);
  return emulated::launch(*config, reinterpret_cast<const void*>(kernel),
                          [kernel, copies = std::move(copies)] { std::apply(kernel, copies); });
}
