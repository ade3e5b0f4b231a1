// Interface of the tests to the emulated device: properties, launch log, capture, injected errors.
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

// Clears launches, traffic and errors. The seed determines the order of threads and blocks; 0: in order.
void reset(unsigned seed);

// Launches run since the last reset.
struct Launch {
  unsigned grid, block;
  size_t shared_bytes;
};
const std::vector<Launch>& launches();

// true: launches are recorded with their arguments and not run; clears earlier records.
void set_capturing(bool on);
std::vector<Launch> recorded();
// Runs all recorded launches.
void replay();

// The next launch returns the error and does not run.
void fail_next_launch(cudaError_t error);

}  // namespace emulated
