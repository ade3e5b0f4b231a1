#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_f64 = Launchers<double, double>::of.data();

}  // namespace onepass::cuda
