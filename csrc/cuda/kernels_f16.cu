#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f16 = Launchers<Half>::of;

}  // namespace onepass::cuda
