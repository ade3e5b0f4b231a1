#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_master_short = Launchers<Master, ShortMoment>::of.data();

}  // namespace onepass::cuda
