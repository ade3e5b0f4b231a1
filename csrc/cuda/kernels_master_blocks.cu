#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_master_blocks = Launchers<Master, ByteMoment>::of.data();

}  // namespace onepass::cuda
