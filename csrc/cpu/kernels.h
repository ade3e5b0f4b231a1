// The table of CPU kernels. kernels.cpp is compiled once for each instruction set and fills one table each.
#pragma once

#include <array>

#include "../plan.h"
#include "../rules/row.h"

namespace onepass {

// Some contiguous rows of one tensor, and the parameters of their step.
struct Tile {
  void* p;
  int16_t* remainder;  // of p, or null
  const void* g;
  bool wide_gradient;  // float32, of a parameter of 16 bits
  void* moment[max_moments];
  uint8_t*
      scale[max_moments];  // of moments with blocks: the first row's, whose `blocks` are followed by the next one's
  int64_t blocks;
  int64_t rows, length;

  const Scalars* scalars;
  WritePolicy policy;
  Affine unprojected;   // of WritePolicy::now
  DrawKey draw_key;     // of the tensor at this step
  int64_t first;        // the place of its first element in the whole tensor, in the order of its shape
  int64_t next_row;     // from there to that of the next row
  double* coefficient;  // c of each row: written by `update` unless the tile is a piece, read by `correct`
  bool piece;           // a part of one row, whose sums `combine` completes
  bool deferred;        // for `correct` of a piece: whether `update` has deferred it
  void* row_cache;      // one row: of directions u (WritePolicy::buffered) or of the old weights (WritePolicy::now)
};

// What `correct` needs beside the tile: how `update` has written p, and the gate.
struct Decision {
  WritePolicy policy;
  Affine unprojected;
  Gate gate;
  double layer_coefficient;  // of Gate::layer
};

struct Kernels {
  void (*step)(const Tile&);            // elementwise: moments and p in one pass, no sums
  RowStats (*update)(const Tile&);      // moments, p as Tile::policy says, and the sums
  RowStats (*gate_stats)(const Tile&);  // sums of p and g only; writes nothing
  void (*correct)(const Tile&, const Decision&);
  double (*square_sum)(const Tile&);  // over the gradients as they lie in memory
};

typedef std::array<std::array<Kernels, rule_count>, storage_count> KernelTable;  // by storage, by RuleId

namespace baseline {
extern const KernelTable table;
}
namespace avx2 {
extern const KernelTable table;
}
namespace avx512 {
extern const KernelTable table;
}

// The kernels of the best instruction set that this machine and the environment variable ONEPASS_ISA allow.
const Kernels& kernels(const KernelKey& key);
const char* isa();                       // its name
std::vector<const char*> usable_isas();  // all that this machine can run

}  // namespace onepass
