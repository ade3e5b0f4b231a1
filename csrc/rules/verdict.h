// Speculation: the update writes p under a predicted gate; the verdict says which gate it was, and whether some rows
// are to be corrected. Shared by the CPU and the CUDA kernels.
#pragma once

#include "projection.h"

namespace onepass {

// When the update writes the parameter.
enum class WritePolicy : int {
  now,       // at once, under the step without projection, the same for all rows (gate none)
  buffered,  // once the sums of the row are known, from the row cache (gate channel)
  deferred,  // not at all: the correction writes it
};

// rows_fit: the row cache holds a whole row from its sums to its write.
ONEPASS_HD WritePolicy write_policy_for(Gate prediction, bool rows_fit) {
  if (prediction == Gate::none) return WritePolicy::now;
  return prediction == Gate::channel && rows_fit ? WritePolicy::buffered : WritePolicy::deferred;
}

// The affine step that the update has applied to a row: none if the row was deferred, because its gate
// needs sums that were not complete, or p could not be recovered from the step.
struct Applied {
  Affine step;
  bool deferred;
};

ONEPASS_HD Applied applied(const Projection& pr, WritePolicy policy, const Affine& unprojected, double c) {
  Affine step = policy == WritePolicy::buffered ? pr.affine(Gate::channel, c) : unprojected;
  bool deferred = policy == WritePolicy::deferred || !recoverable(step, pr.s * c);
  return {deferred ? Affine{0, 0} : step, deferred};
}

// Statistics of some rows of a tensor. `deferred`: at least one row was deferred.
struct RowStats {
  RowSums sums;
  double max_cosine_squared = 0;
  bool deferred = false;

  ONEPASS_HD void add(const RowStats& o) {
    sums.add(o.sums);
    max_cosine_squared = max_or_nan(max_cosine_squared, o.max_cosine_squared);
    deferred |= o.deferred;
  }
};

// Statistics of a whole tensor, from which its gate is decided. Where its rows are spread over several plans, the sums
// and `rows` are added up, and of the cosines the largest counts, a NaN before all others. backend/base.py names the
// fields.
struct TensorStats {
  RowSums sums;
  double max_cosine_squared = 0, rows = 0;
};
static_assert(sizeof(TensorStats) == 6 * sizeof(double));

// The decision of the gate of one projected tensor at one step, and what the correction needs. No padding: nvcc would
// copy it through the stack.
struct Verdict {
  Gate gate = Gate::none;
  WritePolicy policy = WritePolicy::now;    // with which the update has written
  int corrected = 0, needs_correction = 0;  // the prediction was wrong; that, or some row was deferred
  double scaled_cosine = 0;                 // max over rows of |cos|*sqrt(length)
  double layer_coefficient = 0;             // of Gate::layer
  RowSums sums;                             // over the whole tensor
};

// The cosine from its square, for rows of `length` elements. That of a single element is 1 (less only where eps is the
// norm), but its square comes from products that were rounded to `unit`, and is up to 7 units away.
ONEPASS_HD double cosine_of(double squared, double length, double unit) {
  return length == 1 && std::fabs(squared - 1) <= 8 * unit ? 1 : std::sqrt(squared);
}

// The gate of a tensor with rows of `length` elements. unit: the rounding unit of the sums.
ONEPASS_HD Verdict verdict_of(const Projection& pr, const TensorStats& all, double length, double unit) {
  double max_cosine = cosine_of(all.max_cosine_squared, length, unit), elements = all.rows * length;
  double layer_cosine = cosine_of(pr.cosine_squared(all.sums), elements, unit);
  Verdict v;
  v.sums = all.sums;
  v.scaled_cosine = max_cosine * std::sqrt(length);
  v.layer_coefficient = pr.coefficient(all.sums);
  v.gate = pr.fixed_gate != no_fixed_gate      ? Gate(pr.fixed_gate)
           : pr.passes(max_cosine, length)     ? Gate::channel
           : pr.passes(layer_cosine, elements) ? Gate::layer
                                               : Gate::none;
  return v;
}

// The verdict on a tensor whose gate was known before its update, completed by what the update has summed up.
ONEPASS_HD Verdict completed(Verdict known, const Projection& pr, double pu) {
  known.sums.pu = pu;
  known.layer_coefficient = pr.coefficient(known.sums);
  return known;
}

// Whether the update was made for another gate. A fixed gate is always predicted rightly.
ONEPASS_HD bool mispredicted(const Projection& pr, WritePolicy policy, Gate gate) {
  return pr.fixed_gate == no_fixed_gate && gate != (policy == WritePolicy::now ? Gate::none : Gate::channel);
}

}  // namespace onepass
