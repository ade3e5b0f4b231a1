#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_stochastic_blocks = Launchers<Stochastic, ByteMoment>::of.data();

}  // namespace onepass::cuda
