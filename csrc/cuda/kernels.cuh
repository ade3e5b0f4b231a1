// The kernels: step (elementwise), and update, measure and settle (with a gate). A persistent grid walks the items of a
// plan; blocks take the large ones, warps the small ones.
//
//     prepare     scalars and step counts of groups whose steps the device counts, before all else
//     step        moments and p in one go
//     measure     sums of p and g, and from them the gate, for tensors that do not speculate
//     update      moments, p under the gate predicted or known, and the sums; a tensor's last crew judges it
//     settle      p of the tensors whose prediction was wrong, or whose rows were left alone
//     square_sum  of the gradient of every tensor, for clipping
#pragma once

#include "crew.cuh"
#include "judge.cuh"
#include "live.cuh"
#include "rows.cuh"

namespace onepass::cuda {

enum class Phase { step, measure, update, settle, square_sum };

// Calls work with the rows of an item, however their elements are reached. The host gives strided tensors to blocks.
template <class Crew, class P, class Rule, class Work>
__device__ __forceinline__ void with_rows(const Frame& f, Board& board, const Opened<Rule>& o, const Work& work) {
  if (!o.t->layout) {
    const Operands<P, Rule, true> packed(o);
    work(Rows<Crew, Operands<P, Rule, true>, Rule>{f, board, packed});
  } else if constexpr (Crew::size == block_size) {
    const Operands<P, Rule, false> strided(o);
    work(Rows<Crew, Operands<P, Rule, false>, Rule>{f, board, strided});
  }
}

// One item in one phase.
template <Phase phase, class Crew, class P, class Rule>
__device__ __forceinline__ void visit(const Frame& f, Board& board, const Opened<Rule>& o, unsigned index) {
  const DeviceTensor& t = *o.t;
  const Judge<Crew, Opened<Rule>> judge{f, board, o};
  auto rows = [&](const auto& work) { with_rows<Crew, P>(f, board, o, work); };

  if constexpr (phase == Phase::step) {
    rows([](const auto& r) { r.step(); });
  } else if constexpr (phase == Phase::square_sum) {
    Crew::clear(board);
    rows([](const auto& r) { r.square_sum(); });
    if (judge.put(index)) judge.squared();
  } else if constexpr (phase == Phase::measure) {
    if (!t.projected || t.speculates) return;
    Crew::clear(board);
    rows([](const auto& r) { r.measure(); });
    if (judge.put(index)) judge.measured();
  } else if constexpr (phase == Phase::update) {
    Gate prediction = Gate::none;
    if (t.speculates)
      prediction = predicted(load(t.gate_counter, of_plan));
    else if (t.projected)
      prediction = load(&f.verdicts[o.tensor].gate, of_reports);
    if (!t.speculates && prediction == Gate::none) return rows([](const auto& r) { r.step(); });
    const Write write = write_for(prediction, t.rows_fit);
    Crew::clear(board);
    rows([&](const auto& r) { r.update(write); });
    if (judge.put(index)) judge.updated(write);
  } else {
    if (!t.projected || !load(&f.verdicts[o.tensor].settle, of_reports)) return;
    const DeviceVerdict v = load(&f.verdicts[o.tensor], of_reports);
    const bool left_alone = load(&f.reports[index].deferred, of_reports);
    rows([&](const auto& r) { r.settle(v, left_alone); });
  }
}

// Opens an item and visits it, if it is for this launch and its tensor has a gradient.
template <Phase phase, class Crew, class P, class Rule>
__device__ __forceinline__ void open(const Arguments<Rule>& a, Board& board, unsigned index) {
  const Frame& f = a.frame;
  const Item item = load(f.items + index, of_plan);
  const DeviceTensor* t = f.tensors + unsigned(item.tensor);
  ONEPASS_TRACE(of_plan, sizeof(DeviceTensor), false);
  if (t->kind != f.kind) return;
  const void* g = f.gradients ? load(f.gradients + unsigned(item.tensor), of_plan) : a.gradient[unsigned(item.tensor)];
  if (!g) return;
  const Course<Rule>* course =
      f.courses ? reinterpret_cast<const Course<Rule>*>(f.courses + int64_t(t->course) * course_bytes)
                : a.course + t->course;
  visit<phase, Crew, P>(f, board, Opened<Rule>(item, t, course, g), index);
}

template <Phase phase, class P, class Rule>
__device__ __forceinline__ void each_item(const Arguments<Rule>& a) {
  const Frame& f = a.frame;
  if (phase != Phase::square_sum && skipped(f.scaling)) return;
  Board& board = *reinterpret_cast<Board*>(onepass_room);
  for (int i = blockIdx.x; i < f.block_items; i += gridDim.x) {
    open<phase, Block, P>(a, board, i);
    __syncthreads();
  }
  for (int i = f.block_items + int(blockIdx.x) * warps + warp(); i < f.all_items; i += gridDim.x * warps) {
    open<phase, Warp, P>(a, board, i);
    __syncwarp();
  }
}

// Blocks to a multiprocessor that the registers are to allow; without spills, float64 allows fewer.
template <class Rule>
constexpr int blocks_of(int blocks) {
  return sizeof(typename Rule::Number) == 8 ? blocks - 1 : blocks;
}

template <class P, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4)) step(const Arguments<Rule> __grid_constant__ a) {
  each_item<Phase::step, P>(a);
}
template <class P, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3)) measure(const Arguments<Rule> __grid_constant__ a) {
  each_item<Phase::measure, P>(a);
}
template <class P, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3)) update(const Arguments<Rule> __grid_constant__ a) {
  each_item<Phase::update, P>(a);
}
template <class P, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3)) settle(const Arguments<Rule> __grid_constant__ a) {
  each_item<Phase::settle, P>(a);
}

template <class P, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    square_sum(const Arguments<Rule> __grid_constant__ a) {
  each_item<Phase::square_sum, P>(a);
}

// A block to a multiprocessor is all it needs: where nothing is said, nvcc 13.0 saves registers and spills on sm_120.
template <class P, class Rule>
__global__ void __launch_bounds__(block_size, 1) prepare(const Arguments<Rule> __grid_constant__ a) {
  const Frame& f = a.frame;
  if (skipped(f.scaling)) return;
  for (int i = int(blockIdx.x) * block_size + int(threadIdx.x); i < f.all_tensors; i += gridDim.x * block_size) {
    const void* g = f.gradients ? load(f.gradients + i, of_plan) : a.gradient[i];
    if (g && f.tensors[i].kind == f.kind && f.tensors[i].live >= 0) prepare<Rule>(f, i);
  }
}

}  // namespace onepass::cuda
