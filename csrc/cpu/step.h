// One step on the CPU: update, verdict, settle.
#pragma once

#include <functional>

#include "kernels.h"

namespace onepass {

class CpuStepper {
 public:
  explicit CpuStepper(Plan& plan);

  // Steps every active tensor of the plan, its gradient multiplied by `factor`. The results do not depend on `threads`.
  void step(int threads, double factor);

  // The sum of squares over the gradients of all active tensors; neither does it.
  double square_sum(int threads);

  const std::vector<Verdict>& verdicts() const { return verdicts_; }

 private:
  // Elements of an item, and so of the longest row that is held on chip between its sums and its write: 128 KiB of
  // float32 directions, which fits the second-level cache of every machine we know of.
  static constexpr int64_t item_elements = 32768;

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

  void use(int threads);
  void set_course(int tensor, const Scalars& scalars);
  void measure();
  void update();
  void settle();
  void judge(int tensor);
  Report decide(int tensor);
  void choose_write(Course& c, const Tensor& t) const;
  Report add_up(int tensor);

  using Work = std::function<void(const Item&, int64_t index, Scratch&)>;
  void add_items(int tensor);
  void add_active_items();
  void run_items(const Work& work);
  Tile tile_of(const Item& item, int64_t index, Scratch& scratch);
  void put_back(const Item& item, const Tile& tile, Writes writes) const;

  Plan& plan_;
  int threads_ = 1;
  std::vector<Course> courses_;
  std::vector<Report> reports_;       // of every item
  std::vector<double> coefficients_;  // c of every row of the projected tensors
  std::vector<Verdict> verdicts_;
  std::vector<Scratch> scratch_;
  std::vector<int64_t> queue_;    // items of the present phase
  std::vector<int64_t> batches_;  // where each batch of the queue ends
};

}  // namespace onepass
