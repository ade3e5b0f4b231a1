// One step on the CPU: update, verdict, settle.
#pragma once

#include <functional>

#include "kernels.h"

namespace onepass {

// What the gate of one projected tensor saw at the last step.
struct Verdict {
  bool stepped = false;
  Gate gate = Gate::none;
  double scaled_cosine = 0;  // max over rows of |cos|*sqrt(length)
  RowSums sums;              // over the whole tensor
  bool settled = false;      // the prediction was wrong
};

class CpuStepper {
 public:
  explicit CpuStepper(Plan& plan);

  // Steps every active tensor of the plan. The results do not depend on `threads`.
  void step(int threads);

  const std::vector<Verdict>& verdicts() const { return verdicts_; }

 private:
  // What is decided about a tensor in the course of one step.
  struct Course {
    Scalars scalars;
    const Kernels* kernels;
    Gate prediction;
    bool speculates;
    Write write;
    bool needs_sums;
    Affine through;
    double layer_coefficient;
  };

  // One thread's room: a row of directions or of weights, and the operands of a strided item as contiguous rows.
  struct Scratch {
    std::vector<char> row, operand[2 + max_moments];
  };

  // Which operands of an item a kernel writes.
  struct Writes {
    bool p, moments;
  };

  void set_course(int tensor, const Scalars& scalars);
  void measure();
  void update();
  void settle();
  void judge(int tensor);
  bool decide(int tensor);
  void choose_write(Course& c, const Tensor& t) const;
  double gather_sums(int tensor, RowSums& sums, bool& deferred);

  using Work = std::function<void(const Item&, int64_t index, Scratch&)>;
  void add_items(int tensor);
  void run_items(const Work& work);
  Tile tile_of(const Item& item, int64_t index, Scratch& scratch);
  void put_back(const Item& item, const Tile& tile, Writes writes) const;

  Plan& plan_;
  int threads_ = 1;
  std::vector<Course> courses_;
  std::vector<Report> reports_;  // of every item
  std::vector<Verdict> verdicts_;
  std::vector<Scratch> scratch_;
  std::vector<int64_t> queue_;    // items of the present phase
  std::vector<int64_t> batches_;  // where each batch of the queue ends
};

}  // namespace onepass
