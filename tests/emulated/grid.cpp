#include "grid.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "fiber.h"
#include "sanitizer.h"

emulated::Index threadIdx, blockIdx, blockDim, gridDim;

// The dynamic shared memory, with the name that kernels declare.
extern "C" {
alignas(128) unsigned char onepass_shared[emulated::room_bytes];
}

namespace emulated {

Warp warps[max_threads / warp_size];

namespace {

Fiber fibers[max_threads];
const std::function<void()>* kernel;

std::mt19937 random_bits;
bool shuffled = false;

std::vector<Warp*> ready;  // the warps of the block that do not wait at a block barrier
size_t turn;               // index in `ready` of the running warp
bool far_ahead;            // each warp runs until it waits for the block, else one phase at a time

const char* did(Place place) {
  switch (place) {
    case Place::syncwarp:
      return "waits in __syncwarp()";
    case Place::shuffle:
      return "waits in a shuffle";
    case Place::vote:
      return "waits in a vote";
    case Place::syncthreads:
      return "waits in __syncthreads()";
    case Place::end:
      return "has returned";
  }
  return "?";
}

[[noreturn]] void die_apart(unsigned thread, Place place, unsigned other_thread, Place other_place) {
  die("block %u would wait forever: thread %u %s, but thread %u %s. All threads of a block must reach its "
      "__syncthreads(), and all 32 of a warp its __syncwarp(), shuffles and votes",
      blockIdx.x, thread, did(place), other_thread, did(other_place));
}

void begin_phase(Warp& warp) {
  const unsigned bits = shuffled ? random_bits() : 0;
  warp.multiplier = bits % warp_size | 1;  // odd, so that the order is a permutation of the lanes
  warp.shift = bits / warp_size % warp_size;
  warp.flip = bits / warp_size / warp_size % warp_size;
  warp.arrived = 0;
  ++warp.phase;
}

void make_all_ready() {
  ready.clear();
  for (unsigned i = 0; i < blockDim.x / warp_size; ++i) ready.push_back(&warps[i]);
  far_ahead = !shuffled || random_bits() % 2;
}

void resume(unsigned thread) {
  threadIdx.x = thread;
  switch_to(fibers[thread]);
}

void resume_a_warp(bool another) {
  if (another) turn = shuffled ? random_bits() % ready.size() : 0;
  begin_phase(*ready[turn]);
  resume(ready[turn]->thread(0));
}

// All warps of the block have arrived at a block barrier or the end.
void end_block_phase() {
  for (unsigned i = 1; i < blockDim.x / warp_size; ++i)
    if (warps[i].place != warps[0].place)
      die_apart(warps[0].first_thread, warps[0].place, warps[i].first_thread, warps[i].place);
  if (warps[0].place == Place::end) return switch_to(host);
  make_all_ready();
  resume_a_warp(true);
}

// All threads of the running warp have arrived at the same place.
void end_phase(Place place) {
  if (place <= Place::warp_wide) return resume_a_warp(!far_ahead);
  ready.erase(ready.begin() + turn);
  if (ready.empty()) return end_block_phase();
  resume_a_warp(true);
}

void fiber_body() {
  for (;;) {
    (*kernel)();
    wait(Place::end);
  }
}

constexpr unsigned char guard = 0xa5;

// Fills a block's shared memory with NaN. The memory beyond it has guard bytes, or is poisoned for AddressSanitizer.
void poison_room(size_t bytes) {
#ifdef EMULATED_ASAN
  ASAN_UNPOISON_MEMORY_REGION(onepass_shared, bytes);
  ASAN_POISON_MEMORY_REGION(onepass_shared + bytes, room_bytes - bytes);
#endif
  std::memset(onepass_shared, 0xff, bytes);
}

#ifdef EMULATED_ASAN
void place_guards(size_t) {}
void check_guards(size_t) {}
#else
void place_guards(size_t bytes) {
  std::memset(onepass_shared + bytes, guard, room_bytes - bytes);
}
void check_guards(size_t bytes) {
  const unsigned char *begin = onepass_shared + bytes, *end = onepass_shared + room_bytes;
  if (*begin == guard && std::memcmp(begin, begin + 1, end - begin - 1) == 0) return;
  const unsigned char* touched = std::find_if(begin, end, [](unsigned char byte) { return byte != guard; });
  die("a block wrote to byte %zu of its shared memory, of which it has %zu", size_t(touched - onepass_shared), bytes);
}
#endif

}  // namespace

void wait(Place place) {
  Warp& warp = warps[threadIdx.x / warp_size];
  if (warp.arrived == 0)
    warp.place = place;
  else if (warp.place != place)
    die_apart(threadIdx.x, place, warp.thread(0), warp.place);
  if (++warp.arrived < warp_size) return resume(warp.thread(warp.arrived));
  end_phase(place);
}

void run_grid(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& to_run) {
  if (threads == 0 || threads > max_threads || threads % warp_size)
    die("a block of %u threads: only whole warps are emulated, 32 to %u threads", threads, max_threads);
  kernel = &to_run;
  gridDim.x = blocks;
  blockDim.x = threads;
  for (unsigned i = 0; i < threads; ++i)
    if (!fibers[i].started()) fibers[i].start(fiber_body, i);
  for (unsigned i = 0; i < threads / warp_size; ++i) warps[i].first_thread = i * warp_size;

  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (shuffled) std::shuffle(order.begin(), order.end(), random_bits);
  place_guards(shared_bytes);
  for (unsigned block : order) {
    blockIdx.x = block;
    poison_room(shared_bytes);
    make_all_ready();
    resume_a_warp(true);
  }
  check_guards(shared_bytes);
}

void shuffle(unsigned seed) {
  shuffled = seed != 0;
  random_bits.seed(seed);
}

void die(const char* format, ...) {
  std::fputs("emulated: ", stderr);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

}  // namespace emulated
