// What the rule headers need so that one text serves g++ and nvcc.
#pragma once

#ifdef __CUDACC__
#define ONEPASS_HD __host__ __device__ __forceinline__
#else
#define ONEPASS_HD inline __attribute__((always_inline))
#endif
