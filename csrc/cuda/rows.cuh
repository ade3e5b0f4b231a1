// The phases of a step on the rows of one item, for one thread group.
#pragma once

#include "item.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

template <class Group, class O, class Rule>
struct Rows {
  typedef typename Rule::Number S;
  static constexpr int lanes = O::lanes;
  typedef Span<lanes> Row;

  const DevicePlan& plan;
  SharedStorage& shared;
  const O& o;

  // Moments and p under one affine step. The rows of an item lie one after the other, so they are one span.
  __device__ void step() const {
    const Rule rule = o.scalars->rule;
    const S d = S(o.scalars->unprojected.d), k = S(o.scalars->unprojected.k);
    Row s = o.row(0);
    s.length *= o.rows;
    each_vector(s, s.vectors(), Group::rank(), Group::size, true, [&](const auto& place, auto& e) {
#pragma unroll
      for (int i = 0; i < lanes; ++i) {
        const S u = e.template direct<true>(rule, i);
        e.p[i] = apply(e.p[i], u, d, k);
      }
      e.write_moments(o, place);
      o.p.write(place, e.p);
    });
  }

  // The sum of squares of g as it lies in memory, over one span as in `step`. Leaves the statistics in shared storage.
  __device__ void square_sum() const {
    Row s = o.row(0);
    s.length *= o.rows;
    constexpr int at_a_time = lanes == 1 ? 1 : 4;
    const int vectors = s.vectors(), width = Group::size;
    RowSums own;
    for (int j = Group::rank(); j < vectors; j += at_a_time * width) {
      S g[at_a_time][lanes];
#pragma unroll
      for (int n = 0; n < at_a_time; ++n)
        if (j + n * width < vectors) o.g.read(o.place(s, j + n * width), g[n]);
#pragma unroll
      for (int n = 0; n < at_a_time; ++n) {
        if (j + n * width >= vectors) continue;
#pragma unroll
        for (int i = 0; i < lanes; ++i) own.gg = fma(double(g[n][i]), double(g[n][i]), own.gg);
      }
    }
    own = Group::sum(own, width, shared);
    Group::collect(Group::rank() == 0 ? RowStats{own} : RowStats{}, width, shared);
  }

  // Calls visit(place, elements) for every width-th vector of a span, from `rank` on. Several are read at a time, so
  // that enough loads are in flight: the compiler cannot move a load above a store that may alias it.
  static constexpr int at_a_time = O::at_a_time;
  template <class Visit>
  __device__ __forceinline__ void each_vector(const Row& s, int vectors, int rank, int width, bool with_gradient,
                                              const Visit& visit) const {
    for (int j = rank; j < vectors; j += at_a_time * width) {
      Elements<O, Rule> e[at_a_time];
#pragma unroll
      for (int n = 0; n < at_a_time; ++n)
        if (j + n * width < vectors) e[n].read(o, o.place(s, j + n * width), with_gradient);
#pragma unroll
      for (int n = 0; n < at_a_time; ++n)
        if (j + n * width < vectors) visit(o.place(s, j + n * width), e[n]);
    }
  }

  // In double, where a product of floats is exact: what a sum then loses is far below what float keeps of it, so that
  // the lane an element falls to, which depends on the alignment of p, leaves no trace.
  __device__ __forceinline__ static void add_products(RowSums& sums, double p, double g, double u) {
    sums.pg = fma(p, g, sums.pg);
    sums.pp = fma(p, p, sums.pp);
    sums.gg = fma(g, g, sums.gg);
    sums.pu = fma(p, u, sums.pu);
  }

  // The lanes that share a row: as many as it has vectors, up to a warp if each gets no more than `most`.
  __device__ int subgroup_width(int most) const {
    const bool even = o.length % lanes == 0 && o.row(0).phase == 0;
    const int vectors = (o.length + lanes - 1) / lanes + (even ? 0 : 1);
    int width = 1;
    while (width < warp_size && width < vectors) width *= 2;
    return vectors > most * warp_size ? Group::size : width;
  }

  // Calls visit(row, span, vectors, rank) for every row with the lane's rank in its subgroup. All lanes of a warp take
  // part in every call; those without a row have no vectors.
  template <class Visit>
  __device__ __forceinline__ void each_row(int width, const Visit& visit) const {
    const int subgroups = Group::size / width, subgroup = Group::rank() / width, rank = Group::rank() % width;
    for (int first = 0; first < o.rows; first += subgroups) {
      const bool active = first + subgroup < o.rows;
      const int r = active ? first + subgroup : 0;
      const Row s = o.row(r);
      visit(r, s, active ? s.vectors() : 0, rank);
    }
  }

  // The row cache of a lane: p and u of its elements from the sums of the row to its write, block_size apart, so that
  // neighbouring lanes use neighbouring banks.
  __device__ int most_cached() const { return plan.row_cache_bytes / int(2 * sizeof(S) * lanes * block_size); }
  __device__ static S* row_cache() {
    return reinterpret_cast<S*>(onepass_shared + sizeof(SharedStorage)) + threadIdx.x;
  }

  __device__ double& coefficient(int r) const { return plan.coefficients[o.t->first_coefficient + o.first_row + r]; }

  // Moments and sums of the rows, and p as `policy` says. Leaves the statistics in shared storage.
  __device__ void update(WritePolicy policy) const {
    const Rule rule = o.scalars->rule;
    const int width = subgroup_width(most_cached());
    each_row(width, [&](int r, const Row& s, int vectors, int rank) {
      RowSums lane_sums;
      S* cached = row_cache();
      each_vector(s, vectors, rank, width, true, [&](const auto& place, auto& e) {
#pragma unroll
        for (int i = 0; i < lanes; ++i, cached += 2 * block_size) {
          const S u = e.template direct<true>(rule, i);
          add_products(lane_sums, e.p[i], e.g[i], u);
          cached[0] = e.p[i];
          cached[block_size] = u;
        }
        e.write_moments(o, place);
      });
      const RowSums sums = Group::sum(lane_sums, width, shared);
      RowDecision step{};
      if (width <= warp_size || rank == 0)
        step = decide_row(o.scalars->projection, policy, o.scalars->unprojected, sums);
      step = Group::broadcast(step, width, shared);
      if (!step.deferred) write_cached(s, vectors, rank, width, step, policy);
      RowStats stats;
      if (vectors > 0 && rank == 0) stats = stats_of(r, sums, step);
      Group::collect(stats, width, shared);
    });
  }

  // The statistics of one row, and its coefficient; those of a piece are completed by the Finalizer.
  __device__ RowStats stats_of(int r, const RowSums& sums, const RowDecision& step) const {
    if (o.piece) return {sums, 0, step.deferred};
    store(&coefficient(r), step.c, of_stats);
    return {sums, o.scalars->projection.cosine_squared(sums), step.deferred};
  }

  __device__ void write_cached(const Row& s, int vectors, int rank, int width, const RowDecision& step,
                               WritePolicy policy) const {
    const S d = S(step.step.d), k = S(step.step.k), c = S(step.c);
    const bool buffer_too =
        Rule::id == RuleId::momentum && policy == WritePolicy::buffered && o.scalars->project_momentum;
    const S* cached = row_cache();
    for (int j = rank; j < vectors; j += width) {
      const auto place = o.place(s, j);
      S p[lanes], b[lanes];
#pragma unroll
      for (int i = 0; i < lanes; ++i, cached += 2 * block_size) {
        const S old_p = cached[0], u = cached[block_size];
        b[i] = u - c * old_p;  // of a buffer that is the direction itself
        p[i] = apply(old_p, u, d, k);
      }
      if (buffer_too) o.m.write(place, b);
      o.p.write(place, p);
    }
  }

  // Sums of p and g only. The gradient's scale is linear, and applied to the sums.
  __device__ void gate_stats() const {
    const double scale = o.scalars->rule.grad_scale;
    const int width = subgroup_width(16);
    each_row(width, [&](int, const Row& s, int vectors, int rank) {
      RowSums lane_sums;
      constexpr int at_a_time = lanes == 1 ? 1 : 4;
      for (int j = rank; j < vectors; j += at_a_time * width) {
        S p[at_a_time][lanes], g[at_a_time][lanes];
#pragma unroll
        for (int n = 0; n < at_a_time; ++n) {
          if (j + n * width >= vectors) continue;
          const auto place = o.place(s, j + n * width);
          o.p.read(place, p[n]);
          o.g.read(place, g[n]);
        }
#pragma unroll
        for (int n = 0; n < at_a_time; ++n) {
          if (j + n * width >= vectors) continue;
#pragma unroll
          for (int i = 0; i < lanes; ++i) add_products(lane_sums, p[n][i], g[n][i], S(0));
        }
      }
      RowSums sums = Group::sum(lane_sums, width, shared);
      if (width > warp_size) Group::sync();  // before the sums of the next row come where these were
      sums.pg *= scale;
      sums.gg *= scale * scale;
      RowStats stats;
      if (vectors > 0 && rank == 0) stats = {sums, o.piece ? 0 : o.scalars->projection.cosine_squared(sums), false};
      Group::collect(stats, width, shared);
    });
  }

  // p from the step that `update` has applied to the step that the verdict asks for.
  __device__ void correct(const Verdict& v, bool piece_deferred) const {
    const KernelScalars<Rule>& scalars = *o.scalars;
    const Projection& pr = scalars.projection;
    const Rule rule = scalars.rule;
    const Gate gate = v.gate;
    const int width = subgroup_width(16);
    each_row(width, [&](int r, const Row& s, int vectors, int rank) {
      if (vectors == 0) return;
      const double own = load(&coefficient(r), of_stats);
      const Applied done = o.piece ? applied_to_piece(scalars.unprojected, piece_deferred)
                                   : applied(pr, v.policy, scalars.unprojected, own);
      const double c = coefficient_under(gate, own, v.layer_coefficient);
      const Affine wanted = pr.affine(gate, c);
      if (!needs_correction(done, wanted)) return;

      const Affine correct = correction(done.step, wanted);
      const S d = S(correct.d), k = S(correct.k);
      const bool buffer_too = Rule::id == RuleId::momentum && scalars.project_momentum && gate != Gate::none;
      each_vector(s, vectors, rank, width, rule.reads_gradient(), [&](const auto& place, auto& e) {
#pragma unroll
        for (int i = 0; i < lanes; ++i) {
          const S u = e.template direct<false>(rule, i);
          e.moment[0][i] = e.moment[0][i] - S(c) * e.p[i];
          e.p[i] = apply(e.p[i], u, d, k);
        }
        if (buffer_too) o.m.write(place, e.moment[0]);
        o.p.write(place, e.p);
      });
    });
  }
};

}  // namespace onepass::cuda
