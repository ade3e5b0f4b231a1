#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f16 = Launchers<Half, float>::of.data();

}  // namespace onepass::cuda
