// Decisions on one row of a projected tensor: its step once its sums are known, and its correction once the gate is.
#pragma once

#include "verdict.h"

namespace onepass {

struct RowDecision {
  Affine step;
  double c;  // the projection coefficient
  bool deferred;
};

// The step of a row under the write policy of its tensor.
ONEPASS_HD RowDecision decide_row(const Projection& pr, WritePolicy policy, const Affine& unprojected,
                                  const RowSums& sums) {
  const double c = pr.coefficient(sums);
  const Applied done = applied(pr, policy, unprojected, c);
  return {done.step, c, done.deferred};
}

// A row that was cut into pieces, from the sums over all of it.
struct CompletedRow {
  double c, cosine_squared;
};

ONEPASS_HD CompletedRow complete_row(const Projection& pr, const RowSums& sums) {
  return {pr.coefficient(sums), pr.cosine_squared(sums)};
}

// What the update has applied to a piece of a row, which is never buffered.
ONEPASS_HD Applied applied_to_piece(const Affine& unprojected, bool deferred) {
  return {deferred ? Affine{0, 0} : unprojected, deferred};
}

// The coefficient of a row under the gate of its tensor. own: of the row; layer: of the whole tensor.
ONEPASS_HD double coefficient_under(Gate gate, double own, double layer) {
  return gate == Gate::layer ? layer : own;
}

// Whether a row is not yet at the step that the gate asks for; `correction` leads there.
ONEPASS_HD bool needs_correction(const Applied& done, const Affine& wanted) {
  return done.deferred || !(done.step == wanted);
}

}  // namespace onepass
