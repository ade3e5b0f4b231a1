#include "launch.cuh"

namespace onepass::cuda {

extern const Launcher* const launchers_master = Launchers<Master, float>::of.data();

}  // namespace onepass::cuda
