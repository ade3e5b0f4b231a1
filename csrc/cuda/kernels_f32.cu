#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f32 = Launchers<float, float>::of.data();

}  // namespace onepass::cuda
