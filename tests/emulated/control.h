// What tests see and set of the emulated device.
#pragma once

#include <cstddef>
#include <vector>

#include "cuda_runtime.h"

namespace emulated {

struct Device {
  int multiprocessors = 2;
  int compute_major = 9;
  int shared_per_multiprocessor = 233472;
  int shared_per_block = 232448;
  int shared_reserved = 1024;
  int blocks_per_multiprocessor = 32;
};
extern Device device;

// Forgets launches, traffic and errors. The orders of threads and blocks follow the seed; 0: in order.
void reset(unsigned seed);

// Launches that have run since the reset.
struct Launch {
  unsigned grid, block;
  size_t shared_bytes;
};
const std::vector<Launch>& launches();

// true: from now on launches are recorded with their arguments, not run. What was recorded before is forgotten.
void set_capturing(bool on);
std::vector<Launch> recorded();
// Runs all launches that were recorded.
void replay();

// The next launch returns the error and does not run.
void fail_next_launch(cudaError_t error);

}  // namespace emulated
