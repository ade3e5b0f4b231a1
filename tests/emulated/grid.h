// Runs the threads of a grid as fibers: one block after the other, and within a block one thread at a time, from one
// barrier or shuffle to the next. The order of blocks, of warps and of the threads in a warp is random, so that a
// kernel that lacks a barrier gives wrong results for some seeds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulated {

constexpr unsigned warp_size = 32;
constexpr unsigned max_threads = 1024;     // of a block
constexpr size_t room_bytes = 256 * 1024;  // of shared memory, more than on any device

struct Index {
  unsigned x;
};

// Places where a thread waits: up to `warp_wide` for its warp, beyond for its block.
enum class Place { syncwarp, shuffle, vote, warp_wide = vote, syncthreads, end };

struct Warp {
  Place place;       // of the threads that have arrived
  unsigned arrived;  // number of threads in this phase: each runs once from one wait to the next
  unsigned phase;
  unsigned first_thread;
  unsigned multiplier, shift, flip;  // the order of threads in this phase

  // Values that the lanes exchange, double-buffered: when a lane writes to one set, all lanes have finished reading it,
  // because they have arrived at the wait for the other.
  uint64_t slots[2][warp_size];

  unsigned thread(unsigned turn) const { return first_thread + (((multiplier * turn + shift) % warp_size) ^ flip); }
};

extern Warp warps[max_threads / warp_size];

// Runs the kernel for all threads; returns when all have finished.
void run_grid(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel);

// Sets the seed of the orders of later launches; 0: in order, each warp runs until it waits for the block.
void shuffle(unsigned seed);

// The calling thread waits until all threads of its warp, or block, wait at the same place.
void wait(Place place);

[[noreturn]] void die(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace emulated

extern emulated::Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulated {

inline void check_mask(unsigned mask) {
  if (mask != 0xffffffffu) die("mask 0x%08x: only 0xffffffff is emulated", mask);
}

// A GPU reports a misaligned access as an error; a CPU may not.
inline void check_alignment(const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) die("an access of %zu bytes at %p is misaligned", bytes, at);
}

// The slots of all lanes of the calling thread's warp, after all lanes have written.
template <class T>
const uint64_t* exchange(unsigned mask, T x, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  check_mask(mask);
  Warp& warp = warps[threadIdx.x / warp_size];
  uint64_t* slots = warp.slots[warp.phase % 2];
  std::memcpy(&slots[threadIdx.x % warp_size], &x, sizeof x);
  wait(place);
  return slots;
}

template <class T>
T value_of_lane(unsigned mask, T x, unsigned lane) {
  const uint64_t* slots = exchange(mask, x, Place::shuffle);
  std::memcpy(&x, &slots[lane % warp_size], sizeof x);
  return x;
}

inline unsigned ballot(unsigned mask, bool predicate) {
  const uint64_t* slots = exchange(mask, uint64_t(predicate), Place::vote);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < warp_size; ++lane) votes |= unsigned(slots[lane]) << lane;
  return votes;
}

}  // namespace emulated
