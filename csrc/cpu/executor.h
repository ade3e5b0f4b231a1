// One step on the CPU: the phases begin, gate_stats, update, decide and correct.
#pragma once

#include <functional>

#include "kernels.h"

namespace onepass {

class CpuExecutor {
 public:
  explicit CpuExecutor(Plan& plan);

  // One step of every active tensor, its gradient multiplied by `factor`: these calls, in this order. The results do
  // not depend on `threads`.
  void begin(int threads, double factor);
  void gate_stats();
  void update();
  void decide();
  void correct();

  // The statistics of every tensor: where they are exchanged, from `update` to `decide`.
  std::vector<TensorStats>& stats() { return stats_; }
  // The sums of every split row, which `update` leaves to others to complete, and the coefficients, of all rows.
  std::vector<RowSums>& row_sums() { return row_sums_; }
  std::vector<double>& coefficients() { return coefficients_; }

  // The sum of squares over the gradient of every tensor, 0 of one that is not active. The results do not depend on
  // `threads` either.
  std::vector<double> square_sums(int threads);

  // The verdict on every tensor, and whether it is of the last step.
  const std::vector<Verdict>& verdicts() const { return verdicts_; }
  bool decided(int tensor) const { return tensor_steps_[tensor].gated; }

 private:
  // Elements of a work item, and so of the longest row that is cached between its sums and its write: 128 KiB of
  // float32 directions, which fits the second-level cache of all current x86-64 and AArch64 processors.
  static constexpr int64_t item_elements = 32768;

  // State of one tensor during one step.
  struct TensorStep {
    Scalars scalars;
    const Kernels* kernels;
    bool gated, predicts, speculates;
    WritePolicy policy;
    bool needs_sums;
    bool deferred;  // some row
    Affine unprojected;
  };

  // Scratch memory of one thread: a row of directions or of weights, and contiguous copies of the operands of a strided
  // item.
  struct Scratch {
    std::vector<char> row, operand[3 + max_moments];
  };

  // The operands that a kernel has written.
  struct Writes {
    bool p, moments;
  };

  void use(int threads);
  void begin_step(int tensor, const Scalars& scalars);
  void choose_policy(TensorStep& step, const Tensor& t, Gate gate) const;
  void combine(int tensor);
  Verdict verdict_on(int tensor) const;

  using Work = std::function<void(const WorkItem&, int64_t index, Scratch&)>;
  void add_items(int tensor);
  void add_active_items();
  void run_items(const Work& work);
  Tile tile_of(const WorkItem& item, int64_t index, Scratch& scratch);
  void scatter_back(const WorkItem& item, const Tile& tile, Writes writes) const;

  Plan& plan_;
  int threads_ = 1;
  std::vector<TensorStep> tensor_steps_;
  std::vector<RowStats> row_stats_;   // of every item
  std::vector<RowSums> row_sums_;     // of every split row
  std::vector<TensorStats> stats_;    // of every tensor
  std::vector<double> coefficients_;  // c of every row of the projected tensors
  std::vector<Verdict> verdicts_;
  std::vector<Scratch> scratch_;
  std::vector<int64_t> queue_;    // items of the present phase
  std::vector<int64_t> batches_;  // where each batch of the queue ends
};

}  // namespace onepass
