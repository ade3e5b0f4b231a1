#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_bf16_blocks = Launchers<BFloat16, ByteMoment>::of.data();

}  // namespace onepass::cuda
