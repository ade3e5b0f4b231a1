#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f64 = Launchers<double>::of;

}  // namespace onepass::cuda
