// Runs the cases of the self-test named by the arguments. A case that fails, or that must abort, prints the reason.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "control.h"
#include "selftest.cu"

namespace selftest {

#define CHECK(what) \
  if (!(what)) (std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what), std::exit(1))

constexpr int rows = 7, length = 1000;

std::vector<float> sums_of_rows(bool barrier, unsigned threads) {
  std::vector<float> x(rows * length), sums(rows, -1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i % 101);
  const auto kernel = barrier ? sum_rows<true> : sum_rows<false>;
  CHECK(launch(rows, threads, threads / 32 * sizeof(float), kernel, x.data(), sums.data(), length) == cudaSuccess);
  return sums;
}

std::vector<float> true_sums() {
  std::vector<float> sums(rows);
  for (int i = 0; i < rows * length; ++i) sums[i / length] += float(i % 101);
  return sums;
}

void reduction() {
  for (unsigned threads : {32, 64, 96, 256, 1024})
    for (unsigned seed : {0, 1, 2, 3, 4}) {
      emulated::reset(seed);
      CHECK(sums_of_rows(true, threads) == true_sums());
    }
}

// Launches from several OS threads are serialized and share the fibers' stacks.
void os_threads() {
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i)
    threads.emplace_back([] {
      for (int j = 0; j < 20; ++j) CHECK(sums_of_rows(true, 128) == true_sums());
    });
  for (std::thread& thread : threads) thread.join();
}

void missing_syncthreads() {
  int wrong = 0;
  for (unsigned seed : {0, 1, 2, 3}) {
    emulated::reset(seed);
    wrong += sums_of_rows(false, 256) != true_sums();
  }
  CHECK(wrong > 1);
}

bool reverses(bool barrier, unsigned seed) {
  emulated::reset(seed);
  std::vector<int> x(64);
  for (int i = 0; i < 64; ++i) x[i] = i;
  CHECK(launch(1, 64, 256, barrier ? reverse_warps<true> : reverse_warps<false>, x.data()) == cudaSuccess);
  for (int i = 0; i < 64; ++i)
    if (x[i] != (i ^ 31)) return false;
  return true;
}
void missing_syncwarp() {
  for (unsigned seed : {0, 1, 2, 3}) CHECK(reverses(true, seed) && !reverses(false, seed));
}

std::vector<unsigned> places(unsigned seed) {
  emulated::reset(seed);
  unsigned count = 0;
  std::vector<unsigned> place(5 * 64);
  CHECK(launch(5, 64, 0, come, &count, place.data()) == cudaSuccess);
  CHECK(count == place.size());
  return place;
}
void orders() {
  const std::vector<unsigned> in_order = places(0);
  CHECK(std::is_sorted(in_order.begin(), in_order.end()));
  CHECK(places(1) != in_order && places(1) != places(2) && places(1) == places(1));
}

void exchanges() {
  for (unsigned seed : {0, 1, 2, 3}) {
    emulated::reset(seed);
    unsigned wrong = 0;
    CHECK(launch(3, 128, 0, exchange, &wrong) == cudaSuccess);
    CHECK(wrong == 0);
  }
}

void poison() {
  std::vector<unsigned char> found(3 * 64);
  CHECK(launch(3, 64, 64, copy_room, found.data(), 0) == cudaSuccess);
  CHECK(std::count(found.begin(), found.end(), 0xff) == 3 * 64);
}

void parameters() {
  auto large = std::make_unique<Large>();
  for (int i = 0; i < 8000; ++i) large->x[i] = i;
  int scale = 3;
  std::vector<int> to(64);
  CHECK(launch(1, 64, 0, pick, *large, &scale, to.data()) == cudaSuccess);
  for (int i = 0; i < 64; ++i) CHECK(to[i] == 3 * i);
}

void capture() {
  emulated::reset(1);
  std::vector<unsigned> place(64);
  unsigned count = 0;
  cudaStreamCaptureStatus status;
  emulated::set_capturing(true);
  CHECK(cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusActive);
  CHECK(launch(1, 32, 0, come, &count, place.data()) == cudaSuccess);
  CHECK(launch(1, 32, 64, come, &count, place.data() + 32) == cudaSuccess);
  CHECK(count == 0 && emulated::launches().empty());
  emulated::set_capturing(false);
  CHECK(cudaStreamIsCapturing(nullptr, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone);
  emulated::replay();
  CHECK(count == 64 && *std::max_element(place.begin(), place.end()) == 63);
  emulated::replay();
  CHECK(count == 128 && emulated::launches().size() == 4 && emulated::launches()[1].shared_bytes == 64);
}

void errors() {
  unsigned count = 0, place[1024];
  CHECK(launch(1, 32, 48 * 1024, come, &count, place) == cudaSuccess);
  CHECK(launch(1, 32, 48 * 1024 + 1, come, &count, place) == cudaErrorInvalidValue);
  CHECK(cudaPeekAtLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaErrorInvalidValue);
  CHECK(cudaGetLastError() == cudaSuccess);
  CHECK(cudaFuncSetAttribute(come, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) == cudaErrorInvalidValue);
  CHECK(cudaFuncSetAttribute(come, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448) == cudaSuccess);
  CHECK(launch(1, 32, 232448, come, &count, place) == cudaSuccess);
  CHECK(launch(1, 2048, 0, come, &count, place) == cudaErrorInvalidConfiguration);
  CHECK(launch(0, 32, 0, come, &count, place) == cudaErrorInvalidConfiguration);
  emulated::fail_next_launch(cudaErrorMemoryAllocation);
  CHECK(launch(1, 32, 0, come, &count, place) == cudaErrorMemoryAllocation);
  CHECK(launch(1, 32, 0, come, &count, place) == cudaSuccess && count == 96);
  CHECK(cudaSetDevice(1) == cudaErrorInvalidDevice &&
        cudaGetErrorName(cudaErrorInvalidDevice) == std::string("cudaErrorInvalidDevice"));
}

int occupancy(int threads, size_t shared_bytes) {
  int blocks = -1;
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, come, threads, shared_bytes) == cudaSuccess);
  return blocks;
}
void devices() {
  CHECK(occupancy(256, 0) == 8 && occupancy(256, 64 * 1024) == 3 && occupancy(32, 0) == 32);
  CHECK(occupancy(32, 232448) == 1 && occupancy(32, 232449) == 0);
  emulated::device.blocks_per_multiprocessor = 1;
  emulated::device.multiprocessors = 132;
  int value = 0;
  CHECK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0) == cudaSuccess && value == 132);
  CHECK(occupancy(256, 0) == 1);
}

void traffic() {
  emulated::reset(0);
  ONEPASS_TRACE(3, 16, false);
  ONEPASS_TRACE(3, 4, true);
  ONEPASS_TRACE(3, 4, true);
  CHECK(emulated::traffic[3][0] == 16 && emulated::traffic[3][1] == 8);
  emulated::reset(0);
  CHECK(emulated::traffic[3][0] == 0 && emulated::traffic[3][1] == 0);
}

// Cases that must abort.

void stuck_block() {
  launch(2, 64, 0, one_warp_waits);
}
void stuck_warp() {
  int x[32];
  launch(1, 32, 0, one_thread_leaves, x);
}
void wrong_mask() {
  int x[32];
  launch(1, 32, 0, half_a_mask, x);
}
void read_past() {
  std::vector<unsigned char> found(64);
  launch(1, 32, 100, copy_room, found.data(), 64);  // within bounds: 96 bytes
  std::puts("so far so good");
  std::fflush(stdout);
  launch(1, 64, 100, copy_room, found.data(), 37);  // one byte out of bounds
}
void misaligned() {
  alignas(16) float from[132] = {};
  float4 to[32];
  launch(1, 32, 0, copy_fours, from, to);
  std::puts("so far so good");
  std::fflush(stdout);
  launch(1, 32, 0, copy_fours, from + 1, to);
}

void write_past() {
  float x = 1, sum;
  launch(1, 64, 4, sum_rows<true>, &x, &sum, 1);
}

void time() {
  constexpr int times = 20000;
  std::vector<float> x(1024);
  for (unsigned seed : {0, 1})
    for (unsigned threads : {32, 256, 1024}) {
      emulated::reset(seed);
      launch(1, threads, 0, shuffle_often, x.data(), 100);
      const auto begin = std::chrono::steady_clock::now();
      launch(1, threads, 0, shuffle_often, x.data(), times);
      const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
      std::printf("%4u threads, %s: %.1f ns for a shuffle of a thread\n", threads, seed ? "shuffled" : "in order",
                  spent.count() / times / threads);
    }
}

const std::map<std::string, void (*)()> cases = {
    {"reduction", reduction},   {"missing_syncthreads", missing_syncthreads},
    {"exchanges", exchanges},   {"missing_syncwarp", missing_syncwarp},
    {"orders", orders},         {"poison", poison},
    {"capture", capture},       {"parameters", parameters},
    {"errors", errors},         {"devices", devices},
    {"traffic", traffic},       {"stuck_block", stuck_block},
    {"stuck_warp", stuck_warp}, {"wrong_mask", wrong_mask},
    {"read_past", read_past},   {"misaligned", misaligned},
    {"write_past", write_past}, {"time", time},
    {"os_threads", os_threads},
};

}  // namespace selftest

int main(int count, char** arguments) {
  for (int i = 1; i < count; ++i) selftest::cases.at(arguments[i])();
}
