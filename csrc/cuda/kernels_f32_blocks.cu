#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f32_blocks = Launchers<float, ByteMoment>::of.data();

}  // namespace onepass::cuda
