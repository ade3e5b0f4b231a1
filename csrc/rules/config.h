// Common to all rule headers, which g++ and nvcc compile.
#pragma once

#ifdef __CUDACC__
#define ONEPASS_HD __host__ __device__ __forceinline__
#else
#define ONEPASS_HD inline __attribute__((always_inline))
#endif

// For lambdas. nvcc 13.0 does not inline the largest by itself, and passes what they capture through memory.
#define ONEPASS_INLINED __attribute__((always_inline))

namespace onepass {

// In the order of the list `Rules` (hyper.h). sgd: without a momentum buffer.
enum class RuleId : int { adam = 0, momentum = 1, sgd = 2 };
constexpr int rule_count = 3;

// The number of moments that a step of a rule reads and writes.
constexpr int moments_of(RuleId id) {
  return id == RuleId::adam ? 2 : id == RuleId::momentum ? 1 : 0;
}

}  // namespace onepass
