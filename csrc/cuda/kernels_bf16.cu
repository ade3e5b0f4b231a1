#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_bf16 = Launchers<BFloat16, float>::of.data();

}  // namespace onepass::cuda
