// The table of CPU kernels. kernels.cpp is compiled once for each instruction set and fills one table each.
#pragma once

#include "../plan.h"
#include "../rules/verdict.h"

namespace onepass {

// A run of contiguous rows of one tensor, and what to do with them.
struct Tile {
  void* p;
  const void* g;
  void* moment[max_moments];
  int64_t rows, length;

  const Scalars* scalars;
  Write write;
  Affine through;       // of Write::through
  double* coefficient;  // c of each row: written by `update` unless the tile is a piece, read by `settle`
  bool piece;           // a part of one row; the verdict puts the row together
  bool left_alone;      // for `settle` of a piece: whether `update` has left it alone
  void* row_room;       // room for a row: of directions u (Write::hold) or of the weights before (Write::through)
};

// The step of the rows as they stand after `update`, given the verdict.
struct Settlement {
  Write write;
  Affine through;
  Gate verdict;
  double layer_coefficient;  // of Gate::layer
};

struct Kernels {
  void (*step)(const Tile&);       // elementwise: moments and p in one go, no sums
  Report (*update)(const Tile&);   // moments, p as Tile::write says, and the sums
  Report (*measure)(const Tile&);  // sums of p and g only; writes nothing
  void (*settle)(const Tile&, const Settlement&);
  double (*square_sum)(const Tile&);  // over the gradients as they lie in memory
};

namespace baseline {
extern const Kernels table[4][3];
}
namespace avx2 {
extern const Kernels table[4][3];
}
namespace avx512 {
extern const Kernels table[4][3];
}

// The kernels of the best instruction set that this machine and the environment variable ONEPASS_ISA allow.
const Kernels& kernels(Dtype dtype, Family family);
const char* isa();                       // its name
std::vector<const char*> usable_isas();  // all that this machine can run

}  // namespace onepass
