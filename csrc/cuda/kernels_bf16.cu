#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_bf16 = Launchers<BFloat16>::of;

}  // namespace onepass::cuda
