#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_bf16_short = Launchers<BFloat16, ShortMoment>::of.data();

}  // namespace onepass::cuda
