// The kernels: step (elementwise), and update, gate_stats and correct (with a gate). A persistent grid walks the items
// of a plan; blocks take the large ones, warps the small ones.
//
//     device_scalars  scalars and step counts of the groups whose steps the device counts, before all others
//     step            moments and p in one pass
//     gate_stats      sums of p and g, and from them the gate, for tensors that do not speculate
//     update          moments, p under the gate predicted or known, and the sums; the last group of a tensor decides
//     decide          the gates, from statistics that were exchanged between the update and it; otherwise, no launch
//     correct         p of the tensors whose prediction was wrong, or that have deferred rows
//     square_sum      of the gradient of every tensor, for clipping
#pragma once

#include "device_scalars.cuh"
#include "finalizer.cuh"
#include "rows.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

enum class Phase { step, gate_stats, update, correct, square_sum };

// Calls work(rows) with the rows of an item, packed or strided. The host gives strided tensors to blocks.
template <class Group, class P, class M, class Rule, class Work>
__device__ __forceinline__ void with_rows(const DevicePlan& plan, SharedStorage& shared, const ItemView<Rule>& o,
                                          const Work& work) {
  if (!o.t->layout) {
    const Operands<P, M, Rule, true> packed(o);
    work(Rows<Group, Operands<P, M, Rule, true>, Rule>{plan, shared, packed});
  } else if constexpr (Group::size == block_size) {
    const Operands<P, M, Rule, false> strided(o);
    work(Rows<Group, Operands<P, M, Rule, false>, Rule>{plan, shared, strided});
  }
}

// The gate under which the update writes: predicted, or known from `gate_stats`. None without a gate.
template <class Rule>
__device__ __forceinline__ Gate gate_to_write(const DevicePlan& plan, const ItemView<Rule>& o) {
  if (o.t->speculates) return predicted(o.scalars->projection, load(o.t->gate_counter, of_plan));
  return o.t->projected ? load(&plan.verdicts[o.tensor].gate, of_stats) : Gate::none;
}
__device__ __forceinline__ WritePolicy policy_of(const DeviceTensor& t, Gate gate) {
  return t.deferred ? WritePolicy::deferred : write_policy_for(gate, t.rows_fit);
}

// One item in one phase.
template <Phase phase, class Group, class P, class M, class Rule>
__device__ __forceinline__ void visit(const DevicePlan& plan, SharedStorage& shared, const ItemView<Rule>& o,
                                      unsigned index) {
  const DeviceTensor& t = *o.t;
  const Finalizer<Group, ItemView<Rule>> finalizer{plan, shared, o};
  auto rows = [&](const auto& work) { with_rows<Group, P, M>(plan, shared, o, work); };

  if constexpr (phase == Phase::step) {
    rows([](const auto& r) { r.step(); });
  } else if constexpr (phase == Phase::square_sum) {
    Group::clear(shared);
    rows([](const auto& r) { r.square_sum(); });
    if (finalizer.publish(index)) finalizer.finalize_square_sum();
  } else if constexpr (phase == Phase::gate_stats) {
    if (!t.projected || t.speculates) return;
    Group::clear(shared);
    rows([](const auto& r) { r.gate_stats(); });
    if (finalizer.publish(index)) finalizer.finalize_gate_stats();
  } else if constexpr (phase == Phase::update) {
    const Gate gate = gate_to_write(plan, o);
    if (!t.speculates && gate == Gate::none) return rows([](const auto& r) { r.step(); });
    const WritePolicy policy = policy_of(t, gate);
    Group::clear(shared);
    rows([&](const auto& r) { r.update(policy); });
    if (finalizer.publish(index)) finalizer.finalize_update(policy);
  } else {
    if (!t.projected || !load(&plan.verdicts[o.tensor].needs_correction, of_stats)) return;
    const Verdict v = load(&plan.verdicts[o.tensor], of_stats);
    const bool deferred = load(&plan.row_stats[index].deferred, of_stats);
    rows([&](const auto& r) { r.correct(v, deferred); });
  }
}

// Calls work(item) with the view of an item, if it has this launch's kernel key and its tensor has a gradient.
template <class Rule, class Work>
__device__ __forceinline__ void with_item(const KernelParams<Rule>& params, unsigned index, const Work& work) {
  const DevicePlan& plan = params.plan;
  const WorkItem item = load(plan.items + index, of_plan);
  const DeviceTensor* t = plan.tensors + unsigned(item.tensor);
  ONEPASS_TRACE(of_plan, sizeof(DeviceTensor), false);
  if (t->key != plan.key) return;
  const void* g =
      plan.gradients ? load(plan.gradients + unsigned(item.tensor), of_plan) : params.gradient[unsigned(item.tensor)];
  if (!g) return;
  const KernelScalars<Rule>* scalars =
      plan.scalars
          ? reinterpret_cast<const KernelScalars<Rule>*>(plan.scalars + int64_t(t->scalars_index) * scalars_bytes)
          : params.scalars + t->scalars_index;
  work(ItemView<Rule>(item, t, scalars, g));
}

template <Phase phase, class Group, class P, class M, class Rule>
__device__ __forceinline__ void run_item(const KernelParams<Rule>& params, SharedStorage& shared, unsigned index) {
  with_item(params, index, [&](const ItemView<Rule>& o) { visit<phase, Group, P, M>(params.plan, shared, o, index); });
}

template <Phase phase, class P, class M, class Rule>
__device__ __forceinline__ void each_item(const KernelParams<Rule>& params) {
  const DevicePlan& plan = params.plan;
  if (phase != Phase::square_sum && skipped(plan.scaling)) return;
  SharedStorage& shared = *reinterpret_cast<SharedStorage*>(onepass_shared);
  for (int i = blockIdx.x; i < plan.block_items; i += gridDim.x) {
    run_item<phase, BlockGroup, P, M>(params, shared, i);
    __syncthreads();
  }
  for (int i = plan.block_items + int(blockIdx.x) * warps + warp(); i < plan.all_items; i += gridDim.x * warps) {
    run_item<phase, WarpGroup, P, M>(params, shared, i);
    __syncwarp();
  }
}

// Blocks per multiprocessor that the registers must allow; float64 would spill at as many.
template <class Rule>
constexpr int blocks_of(int blocks) {
  return sizeof(typename Rule::Number) == 8 ? blocks - 1 : blocks;
}

template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    step(const KernelParams<Rule> __grid_constant__ params) {
  each_item<Phase::step, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3))
    gate_stats(const KernelParams<Rule> __grid_constant__ params) {
  each_item<Phase::gate_stats, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3))
    update(const KernelParams<Rule> __grid_constant__ params) {
  each_item<Phase::update, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(3))
    correct(const KernelParams<Rule> __grid_constant__ params) {
  each_item<Phase::correct, P, M>(params);
}

template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    square_sum(const KernelParams<Rule> __grid_constant__ params) {
  each_item<Phase::square_sum, P, M>(params);
}

// A thread to each tensor, whose statistics have been exchanged.
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, 1) decide(const KernelParams<Rule> __grid_constant__ params) {
  const DevicePlan& plan = params.plan;
  if (skipped(plan.scaling)) return;
  SharedStorage& shared = *reinterpret_cast<SharedStorage*>(onepass_shared);
  for (int i = int(blockIdx.x) * block_size + int(threadIdx.x); i < plan.all_tensors; i += gridDim.x * block_size) {
    const DeviceTensor& t = plan.tensors[i];
    if (!t.projected || t.key != plan.key) continue;
    with_item(params, unsigned(t.first_item), [&](const ItemView<Rule>& o) {
      const bool deferred = load(&plan.verdicts[i].needs_correction, of_stats) != 0;
      Finalizer<BlockGroup, ItemView<Rule>>{plan, shared, o}.decide(load(plan.stats + i, of_stats),
                                                                    policy_of(t, gate_to_write(plan, o)), deferred);
    });
  }
}

// One block per multiprocessor is enough; without a bound, nvcc 13.0 saves registers and spills on sm_120.
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, 1) device_scalars(const KernelParams<Rule> __grid_constant__ params) {
  const DevicePlan& plan = params.plan;
  if (skipped(plan.scaling)) return;
  for (int i = int(blockIdx.x) * block_size + int(threadIdx.x); i < plan.all_tensors; i += gridDim.x * block_size) {
    const void* g = plan.gradients ? load(plan.gradients + i, of_plan) : params.gradient[i];
    if (g && plan.tensors[i].key == plan.key && plan.tensors[i].hyper_index >= 0) device_scalars<Rule>(plan, i);
  }
}

}  // namespace onepass::cuda
