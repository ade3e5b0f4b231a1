#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_stochastic_short = Launchers<Stochastic, ShortMoment>::of.data();

}  // namespace onepass::cuda
