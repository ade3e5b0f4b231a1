// One step on the CPU: the phases gate_stats, update, decide and correct.
#pragma once

#include <functional>

#include "kernels.h"

namespace onepass {

class CpuExecutor {
 public:
  explicit CpuExecutor(Plan& plan);

  // Steps every active tensor of the plan, its gradient multiplied by `factor`. The results do not depend on `threads`.
  void step(int threads, double factor);

  // The sum of squares over the gradients of all active tensors. The result does not depend on `threads` either.
  double square_sum(int threads);

  const std::vector<Verdict>& verdicts() const { return verdicts_; }

 private:
  // Elements of a work item, and so of the longest row that is cached between its sums and its write: 128 KiB of
  // float32 directions, which fits the second-level cache of all current x86-64 and AArch64 processors.
  static constexpr int64_t item_elements = 32768;

  // State of one tensor during one step.
  struct TensorStep {
    Scalars scalars;
    const Kernels* kernels;
    Gate prediction;
    bool speculates;
    WritePolicy policy;
    bool needs_sums;
    Affine unprojected;
    double layer_coefficient;
  };

  // Scratch memory of one thread: a row of directions or of weights, and contiguous copies of the operands of a strided
  // item.
  struct Scratch {
    std::vector<char> row, operand[2 + max_moments];
  };

  // The operands that a kernel has written.
  struct Writes {
    bool p, moments;
  };

  void use(int threads);
  void begin_step(int tensor, const Scalars& scalars);
  void gate_stats();
  void update();
  void correct();
  void decide(int tensor);
  RowStats decide_gate(int tensor);
  void choose_policy(TensorStep& step, const Tensor& t) const;
  RowStats combine(int tensor);

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
  std::vector<double> coefficients_;  // c of every row of the projected tensors
  std::vector<Verdict> verdicts_;
  std::vector<Scratch> scratch_;
  std::vector<int64_t> queue_;    // items of the present phase
  std::vector<int64_t> batches_;  // where each batch of the queue ends
};

}  // namespace onepass
