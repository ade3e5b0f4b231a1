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
__device__ __forceinline__ void with_rows(const DevicePlan& plan, SharedStorage& shared, RowStats& stats_of_warp,
                                          const ItemView<Rule>& o, const Work& work) {
  if (!o.t->layout) {
    const Operands<P, M, Rule, true> packed(o);
    work(Rows<Group, Operands<P, M, Rule, true>, Rule>{plan, shared, stats_of_warp, packed});
  } else if constexpr (Group::size == block_size) {
    const Operands<P, M, Rule, false> strided(o);
    work(Rows<Group, Operands<P, M, Rule, false>, Rule>{plan, shared, stats_of_warp, strided});
  }
}

// The gate under which the update writes: predicted, or known from `gate_stats`. None without a gate.
template <class Rule>
__device__ __forceinline__ Gate gate_to_write(const DevicePlan& plan, const ItemView<Rule>& o) {
  if (o.t->speculates) return predicted(o.scalars->projection, load(o.t->gate_counter, of_plan));
  return o.t->projected ? load(&plan.verdicts[o.tensor].gate, of_stats) : Gate::none;
}
__device__ __forceinline__ WritePolicy policy_of(const DeviceTensor& t, Gate gate) {
  return t.deferred ? WritePolicy::deferred : write_policy_for(gate, t.row_cache != RowCache::none);
}

// One item in one phase. Marks it in `finished` if it has statistics to publish.
template <Phase phase, class Group, class P, class M, class Rule>
__device__ __forceinline__ void visit(const DevicePlan& plan, SharedStorage& shared, FinishedItem& finished,
                                      const ItemView<Rule>& o, int index) {
  const DeviceTensor& t = *o.t;
  auto rows = [&](const auto& work) { with_rows<Group, P, M>(plan, shared, finished.of_warp[warp()], o, work); };
  auto mark = [&] {
    if (Group::rank() == 0) finished.index = index;
  };

  if constexpr (phase == Phase::step) {
    rows([](const auto& r) { r.step(); });
  } else if constexpr (phase == Phase::square_sum) {
    mark();
    rows([](const auto& r) { r.square_sum(); });
  } else if constexpr (phase == Phase::gate_stats) {
    if (!t.projected || t.speculates) return;
    mark();
    rows([](const auto& r) { r.gate_stats(); });
  } else if constexpr (phase == Phase::update) {
    const Gate gate = gate_to_write(plan, o);
    if (!t.speculates && gate == Gate::none) return rows([](const auto& r) { r.step(); });
    mark();
    const WritePolicy policy = policy_of(t, gate);
    rows([&](const auto& r) { r.update(policy); });
  } else {
    const Verdict v = load(&plan.verdicts[o.tensor], of_stats);
    const bool deferred = load(&plan.row_stats[unsigned(index)].deferred, of_stats);
    rows([&](const auto& r) { r.correct(v, deferred); });
  }
}

// What a warp does with the statistics of a whole item.
template <Phase phase, class Rule>
__device__ __forceinline__ void publish(const DevicePlan& plan, const ItemView<Rule>& o, int index,
                                        const RowStats& stats) {
  const Finalizer<ItemView<Rule>> finalizer{plan, o};
  if (!finalizer.publish(index, stats)) return;
  if constexpr (phase == Phase::square_sum) finalizer.finalize_square_sum();
  if constexpr (phase == Phase::gate_stats) finalizer.finalize_gate_stats();
  if constexpr (phase == Phase::update) finalizer.finalize_update(policy_of(*o.t, gate_to_write(plan, o)));
}

// Calls work(view) with the view of an item, if it has this launch's kernel key and its tensor has a gradient.
template <class Rule, class Work>
__device__ __forceinline__ void with_item(const KernelParams<Rule>& params, const DeviceItem& item, const Work& work) {
  const DevicePlan& plan = params.plan;
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

// Blocks of the launch. Read anew where it is needed, as nvcc would keep it in a register.
__device__ __forceinline__ int grid_size() {
#ifdef __CUDACC__
  int blocks;
  asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
  return blocks;
#else
  return gridDim.x;
#endif
}

// Calls work(item, index, last) for the items from `begin` to `end` that fall to a group, the first-th of as many as
// there are groups of the grid, `groups` in each block. The line of the next item is asked for before an item is worked
// on, so that nobody waits for it. backwards: from the end, so that the kernel after this one begins with what this one
// has read last, and the second-level cache still holds.
template <class Work>
__device__ __forceinline__ void each_item(const DevicePlan& plan, int begin, int end, int first, int groups,
                                          bool backwards, const Work& work) {
  const auto index_of = [&](int i) { return backwards ? begin + end - 1 - i : i; };
  for (int i = begin + first; i < end;) {
    const int next = i + grid_size() * groups;
    if (next < end) prefetch(plan.items + unsigned(index_of(next)));
    work(load(plan.items + unsigned(index_of(i)), of_plan), index_of(i), next >= end);
    i += grid_size() * groups;
  }
}

// Publishes the statistics of the items that a block has finished, a warp those of one. As many at a time as there are
// warps, so that the warps meet, and wait for the release of what they have written, only once in so many items.
template <Phase phase, class Rule>
__device__ __forceinline__ void publish_finished(const KernelParams<Rule>& params, SharedStorage& shared, int count) {
  __syncthreads();
  const FinishedItem& own = shared.finished[warp()];
  const int index = warp() < count ? own.index : -1;
  RowStats stats;
  if (index >= 0)
    for (int w = 0; w < warps; ++w) stats.add(own.of_warp[w]);
  __syncthreads();  // before the next items come where these were
  if (index < 0) return;
  with_item(params, load(params.plan.items + unsigned(index), of_plan),
            [&](const ItemView<Rule>& o) { publish<phase>(params.plan, o, index, stats); });
}

// Whether tensors with such moments may go to warps. None that is large enough for moments of 8 bits does.
template <class M>
constexpr bool goes_to_warps = !std::is_same_v<M, ByteMoment>;

template <Phase phase, class P, class M, class Rule>
__device__ __forceinline__ void run_items_of_warps(const KernelParams<Rule>& params, SharedStorage& shared) {
  const DevicePlan& plan = params.plan;
  constexpr bool publishes = phase != Phase::step;
  constexpr bool backwards = phase == Phase::gate_stats || phase == Phase::square_sum;
  // From the block on that comes after that of the last item, so that none has one more of both.
  const int block = int(blockIdx.x + gridDim.x - plan.block_items % gridDim.x) % gridDim.x;
  FinishedItem& own = shared.finished[warp()];
  each_item(plan, plan.block_items, plan.all_items, block * warps + warp(), warps, backwards,
            [&](const DeviceItem& item, int index, bool) ONEPASS_INLINED {
              if (publishes && lane() == 0) own.of_warp[warp()] = {}, own.index = -1;
              with_item(params, item, [&](const ItemView<Rule>& o) ONEPASS_INLINED {
                visit<phase, WarpGroup, P, M>(plan, shared, own, o, index);
              });
              if constexpr (publishes) {
                __syncwarp();
                if (own.index >= 0)  // the view is made anew, since `update` has no registers to keep it
                  with_item(params, load(plan.items + unsigned(own.index), of_plan),
                            [&](const ItemView<Rule>& o) { publish<phase>(plan, o, own.index, own.of_warp[warp()]); });
                __syncwarp();
              }
            });
}

template <Phase phase, class P, class M, class Rule>
__device__ __forceinline__ void run_items(const KernelParams<Rule>& params) {
  const DevicePlan& plan = params.plan;
  if (phase != Phase::square_sum && skipped(plan.scaling)) return;
  SharedStorage& shared = *reinterpret_cast<SharedStorage*>(onepass_shared);
  constexpr bool publishes = phase != Phase::step;
  constexpr bool backwards = phase == Phase::gate_stats || phase == Phase::square_sum;

  int finished = 0;
  each_item(plan, 0, plan.block_items, blockIdx.x, 1, backwards,
            [&](const DeviceItem& item, int index, bool last) ONEPASS_INLINED {
              FinishedItem& own = shared.finished[finished];
              if (publishes && lane() == 0) own.of_warp[warp()] = {};
              if (publishes && threadIdx.x == 0) own.index = -1;
              with_item(params, item, [&](const ItemView<Rule>& o) ONEPASS_INLINED {
                visit<phase, BlockGroup, P, M>(plan, shared, own, o, index);
              });
              if (publishes && (++finished == warps || last)) {
                publish_finished<phase>(params, shared, finished);
                finished = 0;
              }
            });

  if constexpr (goes_to_warps<M>) run_items_of_warps<phase, P, M>(params, shared);
}

// The items of the tensors that are to be corrected, those that Group takes, one after the other to the groups of the
// grid. Whoever comes last makes the list empty for the next step.
template <class Group, class P, class M, class Rule>
__device__ __forceinline__ void correct_listed(const KernelParams<Rule>& params, int count) {
  const DevicePlan& plan = params.plan;
  SharedStorage& shared = *reinterpret_cast<SharedStorage*>(onepass_shared);
  constexpr bool to_blocks = Group::size == block_size;
  const int stride = to_blocks ? gridDim.x : gridDim.x * warps;
  int at = to_blocks ? blockIdx.x : int(blockIdx.x) * warps + warp();
  for (int first = 0; first < count; first += warp_size) {
    Correction own{};
    if (first + lane() < count) own = load(plan.corrections + first + lane(), of_stats);
    for (int i = 0; i < warp_size && first + i < count; ++i) {
      const int first_item = __shfl_sync(all_lanes, own.first_item, i), items = __shfl_sync(all_lanes, own.items, i);
      if ((first_item < plan.block_items) != to_blocks) continue;
      for (; at < items; at += stride)
        with_item(params, load(plan.items + first_item + at, of_plan), [&](const ItemView<Rule>& o) {
          visit<Phase::correct, Group, P, M>(plan, shared, shared.finished[0], o, first_item + at);
        });
      at -= items;
    }
  }
}

template <class P, class M, class Rule>
__device__ __forceinline__ void run_corrections(const KernelParams<Rule>& params) {
  unsigned* const corrected = params.plan.corrected;
  const int count = int(load(corrected, of_stats));
  if (count == 0) return;
  correct_listed<BlockGroup, P, M>(params, count);
  if constexpr (goes_to_warps<M>) correct_listed<WarpGroup, P, M>(params, count);
  __syncthreads();
  // The release orders the load of the count, by every thread of the block, before the addition; so the last block has
  // its stores after all loads.
  if (threadIdx.x == 0 && add_release(corrected + 1) + 1 == gridDim.x) {
    acquire();
    store(corrected, 0u, of_stats);
    store(corrected + 1, 0u, of_stats);
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
  run_items<Phase::step, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    gate_stats(const KernelParams<Rule> __grid_constant__ params) {
  run_items<Phase::gate_stats, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    update(const KernelParams<Rule> __grid_constant__ params) {
  run_items<Phase::update, P, M>(params);
}
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    correct(const KernelParams<Rule> __grid_constant__ params) {
  run_corrections<P, M>(params);
}

template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, blocks_of<Rule>(4))
    square_sum(const KernelParams<Rule> __grid_constant__ params) {
  run_items<Phase::square_sum, P, M>(params);
}

// A thread to each tensor, whose statistics have been exchanged.
template <class P, class M, class Rule>
__global__ void __launch_bounds__(block_size, 1) decide(const KernelParams<Rule> __grid_constant__ params) {
  const DevicePlan& plan = params.plan;
  if (skipped(plan.scaling)) return;
  for (int i = int(blockIdx.x) * block_size + int(threadIdx.x); i < plan.all_tensors; i += gridDim.x * block_size) {
    const DeviceTensor& t = plan.tensors[i];
    if (!t.projected || t.key != plan.key) continue;
    // Of its items nothing is needed; it may have none, where others have its rows.
    with_item(params, DeviceItem{i, 0, 0}, [&](const ItemView<Rule>& o) {
      const bool deferred = load(&plan.verdicts[i].needs_correction, of_stats) != 0;
      Finalizer<ItemView<Rule>>{plan, o}.decide(load(plan.stats + i, of_stats), policy_of(t, gate_to_write(plan, o)),
                                                deferred);
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
