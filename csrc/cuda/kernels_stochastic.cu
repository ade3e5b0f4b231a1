#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_stochastic = Launchers<Stochastic, float>::of.data();

}  // namespace onepass::cuda
