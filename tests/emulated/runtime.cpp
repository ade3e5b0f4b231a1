// The emulated CUDA runtime: launches, errors and device attributes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <unordered_map>

#include "control.h"

namespace emulated {

Device device;
uint64_t traffic[16][2];
int approximation_choice = -1;

namespace {

// One of the floats next to `exact`, within an error of 2^bits of it.
float near(double exact, double bits, uint32_t choice) {
  if (!(std::fabs(exact) >= 0x1p-126))
    return std::isnan(exact) ? exact : std::copysign(0.0f, static_cast<float>(exact));
  const float nearest = static_cast<float>(exact);
  if (!std::isfinite(nearest)) return nearest;
  const float other = choice % 3 == 0 ? nearest : std::nextafter(nearest, choice % 3 == 1 ? INFINITY : -INFINITY);
  return std::fabs(other - exact) <= std::fabs(exact) * std::exp2(bits) ? other : nearest;
}

uint32_t choice_of(float x) {
  if (approximation_choice >= 0) return approximation_choice;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (bits * 2654435761u) >> 8;
}

struct Recorded {
  Launch launch;
  std::function<void()> thread;
};

constexpr size_t shared_without_asking = 48 * 1024;

std::mutex one_launch;  // protects the variables below and the grid
std::vector<Launch> log;
std::vector<Recorded> recording;
bool capturing = false;
cudaError_t next_error = cudaSuccess;
std::unordered_map<const void*, size_t> shared_allowed;  // by kernel

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t noted(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t check(const cudaLaunchConfig_t& config, const void* kernel) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.y != 1 || grid.z != 1 || block.y != 1 || block.z != 1)
    die("only grids and blocks of one dimension are emulated");
  if (config.numAttrs) die("launch attributes are not emulated");
  if (grid.x == 0 || grid.x > 0x7fffffffu || block.x == 0 || block.x > max_threads)
    return cudaErrorInvalidConfiguration;
  const auto allowed = shared_allowed.find(kernel);
  const size_t most = allowed == shared_allowed.end() ? shared_without_asking : allowed->second;
  return config.dynamicSmemBytes > most ? cudaErrorInvalidValue : cudaSuccess;
}

void run(const Recorded& recorded) {
  log.push_back(recorded.launch);
  run_grid(recorded.launch.grid, recorded.launch.block, recorded.launch.shared_bytes, recorded.thread);
}

}  // namespace

float approximate_reciprocal(float x) {
  return near(1 / double(std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x), -23, choice_of(x));
}

float approximate_inverse_root(float x) {
  return near(1 / std::sqrt(double(std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x)), -22.9, choice_of(x));
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> thread) {
  const std::lock_guard lock(one_launch);
  if (next_error != cudaSuccess) return noted(std::exchange(next_error, cudaSuccess));
  if (const cudaError_t error = check(config, kernel)) return noted(error);
  Recorded recorded{{config.gridDim.x, config.blockDim.x, config.dynamicSmemBytes}, std::move(thread)};
  if (capturing)
    recording.push_back(std::move(recorded));
  else
    run(recorded);
  return cudaSuccess;
}

void reset(unsigned seed) {
  const std::lock_guard lock(one_launch);
  shuffle(seed);
  log.clear();
  std::fill_n(&traffic[0][0], sizeof traffic / sizeof traffic[0][0], 0);
  next_error = last_error = cudaSuccess;
}

const std::vector<Launch>& launches() {
  return log;
}

void set_capturing(bool on) {
  const std::lock_guard lock(one_launch);
  capturing = on;
  if (on) recording.clear();
}

std::vector<Launch> recorded() {
  const std::lock_guard lock(one_launch);
  std::vector<Launch> out;
  for (const Recorded& each : recording) out.push_back(each.launch);
  return out;
}

void replay() {
  const std::lock_guard lock(one_launch);
  for (const Recorded& recorded : recording) run(recorded);
}

void fail_next_launch(cudaError_t error) {
  const std::lock_guard lock(one_launch);
  next_error = error;
}

}  // namespace emulated

using emulated::device;
using emulated::noted;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    case cudaErrorUnknown:
      return "cudaErrorUnknown";
  }
  return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorUnknown:
      return "unknown error";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  return std::exchange(emulated::last_error, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() {
  return emulated::last_error;
}

cudaError_t cudaGetDevice(int* number) {
  *number = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
  return noted(number == 0 ? cudaSuccess : cudaErrorInvalidDevice);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int number) {
  if (number != 0) return noted(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = device.compute_major;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = device.shared_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = device.shared_per_block;
      return cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      *value = device.shared_reserved;
      return cudaSuccess;
  }
  return noted(cudaErrorInvalidValue);
}

cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulated::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 || value > device.shared_per_block ||
      size_t(value) > emulated::room_bytes)
    return noted(cudaErrorInvalidValue);
  const std::lock_guard lock(emulated::one_launch);
  emulated::shared_allowed[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads, size_t shared_bytes) {
  if (threads <= 0) return noted(cudaErrorInvalidValue);
  // Shared memory is allocated in units of 128 bytes.
  const int shared = int((shared_bytes + 127) / 128 * 128) + device.shared_reserved;
  *blocks = std::min({2048 / threads, device.shared_per_multiprocessor / shared, device.blocks_per_multiprocessor});
  return cudaSuccess;
}
