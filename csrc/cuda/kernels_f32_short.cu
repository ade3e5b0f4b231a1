#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f32_short = Launchers<float, ShortMoment>::of.data();

}  // namespace onepass::cuda
