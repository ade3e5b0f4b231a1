// From a prediction to a verdict: what the update does with a tensor whose gate is not known yet, what it has done to a
// row, and what the gate turns out to be.
#pragma once

#include "projection.h"

namespace onepass {

// What the update does with the parameter while its gate is not known.
enum class Write : int {
  through,  // p is written under one affine step for all rows (gate none)
  hold,     // p is written once the row's sums are known (gate channel)
  defer,    // p is left alone; settling writes it
};

// rows_fit: a row is held on chip from its sums to its write.
ONEPASS_HD Write write_for(Gate prediction, bool rows_fit) {
  if (prediction == Gate::none) return Write::through;
  return prediction == Gate::channel && rows_fit ? Write::hold : Write::defer;
}

// What the update has done to a row: an affine step, or nothing if it was `left_alone`, because the gate was not to be
// guessed or p could not be had back from the step.
struct Applied {
  Affine step;
  bool left_alone;
};

ONEPASS_HD Applied applied(const Projection& pr, Write write, const Affine& through, double c) {
  Affine step = write == Write::hold ? pr.affine(Gate::channel, c) : through;
  bool left_alone = write == Write::defer || !recoverable(step, pr.s * c);
  return {left_alone ? Affine{0, 0} : step, left_alone};
}

// What some rows tell of their tensor. `deferred`: some row was left alone.
struct Report {
  RowSums sums;
  double max_cosine_squared = 0;
  bool deferred = false;

  ONEPASS_HD void add(const Report& o) {
    sums.add(o.sums);
    max_cosine_squared = max_or_nan(max_cosine_squared, o.max_cosine_squared);
    deferred |= o.deferred;
  }
};

// What the gate of one projected tensor saw at a step.
struct Verdict {
  bool stepped = false;
  Gate gate = Gate::none;
  double scaled_cosine = 0;  // max over rows of |cos|*sqrt(length)
  RowSums sums;              // over the whole tensor
  bool settled = false;      // the prediction was wrong
};

// The cosine from its square, for rows of `length` elements. That of a single element is 1 (less only where eps is the
// norm), but its square comes from products that were rounded to `unit`, and is up to 7 units away.
ONEPASS_HD double cosine_of(double squared, double length, double unit) {
  return length == 1 && std::fabs(squared - 1) <= 8 * unit ? 1 : std::sqrt(squared);
}

// The gate of a tensor of `rows` x `length` from the reports of all its rows. unit: the rounding unit of their sums.
ONEPASS_HD Verdict verdict_of(const Projection& pr, const Report& all, double rows, double length, double unit) {
  double max_cosine = cosine_of(all.max_cosine_squared, length, unit);
  Verdict v;
  v.stepped = true;
  v.sums = all.sums;
  v.scaled_cosine = max_cosine * std::sqrt(length);
  double layer_cosine = cosine_of(pr.cosine_squared(all.sums), rows * length, unit);
  v.gate = pr.passes(max_cosine, length)            ? Gate::channel
           : pr.passes(layer_cosine, rows * length) ? Gate::layer
                                                    : Gate::none;
  return v;
}

}  // namespace onepass
