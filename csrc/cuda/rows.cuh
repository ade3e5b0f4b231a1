// The phases of a step on the rows of one item, for one thread group.
#pragma once

#include "item.cuh"
#include "thread_group.cuh"

namespace onepass::cuda {

template <class Group, class O, class Rule>
struct Rows {
  typedef typename Rule::Number S;
  static constexpr int lanes = O::lanes;
  static constexpr int at_a_time = O::at_a_time;
  typedef Span<lanes> Row;
  typedef Pack<S, lanes> R;

  const DevicePlan& plan;
  SharedStorage& shared;
  RowStats& stats_of_warp;  // in shared memory: of the rows of this item that the warp has stepped
  const O& o;

  // Moments and p under one affine step. The rows of an item lie one after the other, so they are one span, unless
  // moments have blocks.
  __device__ void step() const {
    const Rule rule = o.scalars->rule;
    const S d = o.scalars->step.d, k = o.scalars->step.k;
    if constexpr (O::has_blocks) {
      const int width = width_of_rows(16);
      each_row(width, [&](int, const Row& s, int vectors, int rank) {
        each_of_blocks(s, vectors, rank, width, rule, [&](auto whole, const auto& place, const auto& e, const R& u) {
          o.p.template write<whole>(place, apply(e.p, u, d, k));
        });
      });
    } else {
      const Row s = all_rows();
      each_elements(s, s.vectors(), Group::rank(), Group::size, true, [&](auto whole, const auto& place, auto& e) {
        const R u = e.template direct<true>(o, place, rule);
        e.p = apply(e.p, u, d, k);
        e.template write_moments<whole>(o, place);
        o.p.template write<whole>(place, e.p);
      });
    }
  }

  // The sum of squares of g as it lies in memory, over one span as in `step`.
  __device__ void square_sum() const {
    const Row s = all_rows();
    RowSums own;
    each_round<loads_at_a_time>(s, s.vectors(), Group::rank(), Group::size, [&](auto whole, auto count, int j) {
      R g[count];
#pragma unroll
      for (int n = 0; n < count; ++n) o.g.template read<whole>(o.place(s, j + n * Group::size), g[n]);
#pragma unroll
      for (int n = 0; n < count; ++n)
#pragma unroll
        for (int i = 0; i < lanes; ++i) own.gg = fma(double(g[n].x[i]), double(g[n].x[i]), own.gg);
    });
    collect(RowStats{sum_lanes(own, warp_size)}, warp_size, stats_of_warp);
  }

  __device__ Row all_rows() const {
    Row s = o.row(0);
    s.length *= o.rows;
    return s;
  }

  // Calls round(whole, count, j) for every width-th vector j of a span, from `rank` on. `count` of them, each `width`
  // after the one before, are a round, whose loads are in flight together: the compiler cannot move a load above a
  // store. Where all are whole, no access needs a test; the vectors of the other rounds come one by one.
  template <int count, class Round>
  __device__ __forceinline__ void each_round(const Row& s, int vectors, int rank, int width, const Round& round) const {
    if constexpr (O::has_blocks) {  // in the order of each_of_blocks
      const bool whole = o.are_whole(s);
      constexpr int of_block = O::vectors_of_block * warp_size;
      for (int first = rank / warp_size * of_block; first < vectors; first += width / warp_size * of_block)
        for (int j = first + lane(); j < first + of_block && j < vectors; j += warp_size)
          if (whole)
            round(std::true_type{}, std::integral_constant<int, 1>{}, j);
          else
            round(std::false_type{}, std::integral_constant<int, 1>{}, j);
    } else if constexpr (lanes == 1) {
      for (int j = rank; j < vectors; j += width) round(std::false_type{}, std::integral_constant<int, 1>{}, j);
    } else {
      const int first = o.aligned ? s.first_whole() : vectors, end = s.end_of_whole();
      for (int j = rank; j < vectors;) {
        if (j >= first && j < end - (count - 1) * width) {
          round(std::true_type{}, std::integral_constant<int, count>{}, j);
          j += count * width;
        } else {
          if (j >= first && j < end)
            round(std::true_type{}, std::integral_constant<int, 1>{}, j);
          else
            round(std::false_type{}, std::integral_constant<int, 1>{}, j);
          j += width;
        }
      }
    }
  }

  // Calls visit(whole, place, elements) for the same vectors with the elements of each.
  template <class Visit>
  __device__ __forceinline__ void each_elements(const Row& s, int vectors, int rank, int width, bool with_gradient,
                                                const Visit& visit) const {
    each_round<at_a_time>(s, vectors, rank, width, [&](auto whole, auto count, int j) {
      Elements<O, Rule> e[count];
#pragma unroll
      for (int n = 0; n < count; ++n) e[n].template read<whole>(o, o.place(s, j + n * width), with_gradient);
#pragma unroll
      for (int n = 0; n < count; ++n) visit(whole, o.place(s, j + n * width), e[n]);
    });
  }

  // Steps the moments of the blocks of a row, each by a warp, and calls visit(whole, place, elements, u). A lane has
  // the vectors of a block that come a warp after each other, as in `each_round`.
  template <class Visit>
  __device__ __forceinline__ void each_of_blocks(const Row& s, int vectors, int rank, int width, const Rule& rule,
                                                 const Visit& visit) const {
    if (o.are_whole(s))
      step_blocks<true>(s, vectors, rank, width, rule, visit);
    else
      step_blocks<false>(s, vectors, rank, width, rule, visit);
  }

  // whole: all vectors are. They are kept in registers until the scale is known; others, which come element by element,
  // are read again.
  template <bool whole, class Visit>
  __device__ __forceinline__ void step_blocks(const Row& s, int vectors, int rank, int width, const Rule& rule,
                                              const Visit& visit) const {
    constexpr int count = O::vectors_of_block, kept = whole ? count : 1;
    const unsigned first_block = o.block_of(s.first);
    constexpr int of_block = count * warp_size;  // vectors
    for (int first = rank / warp_size * of_block + lane(); first / of_block * of_block < vectors;
         first += width * count) {
      const auto block = [&] { return first_block + first / of_block; };
      const uint32_t scale_of_m = o.template scale<0>(block(), lane() == 0);
      const uint32_t scale_of_v = o.template scale<1>(block(), lane() == 0);
      Elements<O, Rule> e[kept];
      const auto read = [&](int n) ONEPASS_INLINED {
        Elements<O, Rule>& own = e[n % kept];
        own = {};
        const int j = first + n * warp_size;
        if (j < vectors) own.template read<whole>(o, o.place(s, j), true);
      };
      const auto advance = [&](int n) ONEPASS_INLINED {
        Elements<O, Rule>& own = e[n % kept];
        own.decode(scale_of_m, scale_of_v);
        own.g = rule.gradient(own.p, own.g);
        rule.advance(own.g, own.moment);
      };
      uint32_t largest_of_m = 0, largest_of_v = 0;
      if constexpr (whole) {
#pragma unroll
        for (int n = 0; n < count; ++n) read(n);
      }
#pragma unroll kept
      for (int n = 0; n < count; ++n) {
        if constexpr (!whole) read(n);
        advance(n);
        e[n % kept].keep_larger(largest_of_m, largest_of_v);
      }
      const uint32_t new_m = Codes<true>::scale_of(__reduce_max_sync(all_lanes, largest_of_m));
      const uint32_t new_v = Codes<false>::scale_of(__reduce_max_sync(all_lanes, largest_of_v));
      if (lane() == 0) {
        store(o.t->scale[0] + block(), uint8_t(new_m), of_m);
        store(o.t->scale[1] + block(), uint8_t(new_v), of_v);
      }
#pragma unroll kept
      for (int n = 0; n < count; ++n) {
        if constexpr (!whole) read(n), advance(n);
        const int j = first + n * warp_size;
        if (j >= vectors) continue;
        Elements<O, Rule>& own = e[n % kept];
        const auto place = o.place(s, j);
        own.template write_codes<whole>(o, place, new_m, new_v);
        visit(std::bool_constant<whole>{}, place, own, rule.direction(own.p, own.g, own.moment));
      }
    }
  }

  // In double, where a product of floats is exact: what a sum then loses is far below what float keeps of it, so that
  // the lane an element falls to, which depends on the alignment of p, leaves no trace.
  __device__ __forceinline__ static void add_products(RowSums& sums, const R& p, const R& g, const R& u) {
#pragma unroll
    for (int i = 0; i < lanes; ++i) {
      const double own_p = p.x[i], own_g = g.x[i], own_u = u.x[i];
      sums.pg = fma(own_p, own_g, sums.pg);
      sums.pp = fma(own_p, own_p, sums.pp);
      sums.gg = fma(own_g, own_g, sums.gg);
      sums.pu = fma(own_p, own_u, sums.pu);
    }
  }

  __device__ int width_of_rows(int most) const {
    if constexpr (O::has_blocks)
      return width_of_blocks((o.length + lanes - 1) / lanes, most, O::vectors_of_block, Group::size);
    const bool even = o.length % lanes == 0 && o.row(0).phase == 0;
    return subgroup_width((o.length + lanes - 1) / lanes + (even ? 0 : 1), o.rows, most, Group::size);
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

  // The row cache of a lane, from the sums of a row to its write: u of its vectors and, where both fit, p. Every 16
  // bytes belong to one thread, whatever it keeps there, as the warps of a block may be at different items; those of
  // neighbouring lanes are neighbours, so that they use neighbouring banks.
  struct alignas(lanes * sizeof(S)) CachedVector {
    R x;
  };
  __device__ static CachedVector& cached(int i) {
    constexpr int of_thread = 16 / sizeof(CachedVector);
    CachedVector* const all = reinterpret_cast<CachedVector*>(onepass_shared + sizeof(SharedStorage));
    return all[(i / of_thread * block_size + int(threadIdx.x)) * of_thread + i % of_thread];
  }
  __device__ bool caches_p() const { return o.t->row_cache != RowCache::u; }
  __device__ int most_cached() const {
    return cached_vectors(o.t->row_cache, plan.row_cache_bytes, sizeof(CachedVector));
  }

  __device__ double& coefficient(int r) const { return plan.coefficients[o.t->first_coefficient + o.first_row() + r]; }

  // Moments and sums of the rows, and p as `policy` says.
  __device__ void update(WritePolicy policy) const {
    const Rule rule = o.scalars->rule;
    const int width = width_of_rows(most_cached());
    const bool with_p = caches_p();
    each_row(width, [&](int r, const Row& s, int vectors, int rank) {
      RowSums lane_sums;
      int i = 0;
      const auto keep = [&](const auto& e, const R& u) ONEPASS_INLINED {
        add_products(lane_sums, e.p, e.g, u);
        cached(i++).x = u;
        if (with_p) cached(i++).x = e.p;
      };
      if constexpr (O::has_blocks)
        each_of_blocks(s, vectors, rank, width, rule,
                       [&](auto, const auto&, const auto& e, const R& u) { keep(e, u); });
      else
        each_elements(s, vectors, rank, width, true, [&](auto whole, const auto& place, auto& e) {
          keep(e, e.template direct<true>(o, place, rule));
          e.template write_moments<whole>(o, place);
        });
      const RowSums sums = Group::sum(lane_sums, width, shared);
      RowDecision step{};
      if (width <= warp_size || rank == 0)
        step = decide_row(o.scalars->projection, policy, o.scalars->unprojected, sums);
      step = Group::broadcast(step, width, shared);
      if (!step.deferred) write_cached(s, vectors, rank, width, step, policy);
      RowStats stats;
      if (vectors > 0 && rank == 0) stats = stats_of(r, sums, step);
      collect(stats, width, stats_of_warp);
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
    const bool with_p = caches_p();
    int i = 0;
    each_round<at_a_time>(s, vectors, rank, width, [&](auto whole, auto count, int j) {
      R p[count], u[count];
#pragma unroll
      for (int n = 0; n < count; ++n) {
        u[n] = cached(i++).x;
        if (with_p)
          p[n] = cached(i++).x;
        else
          o.p.template read<whole>(o.place(s, j + n * width), p[n]);
      }
#pragma unroll
      for (int n = 0; n < count; ++n) {
        const auto place = o.place(s, j + n * width);
        if (buffer_too) write_buffer<whole>(place, u[n] - c * p[n]);  // the direction itself is the buffer
        o.p.template write<whole>(place, apply(p[n], u[n], d, k));
      }
    });
  }

  // Writes a momentum buffer that was projected.
  template <bool whole, class Place>
  __device__ __forceinline__ void write_buffer(const Place& place, R buffer) const {
    if constexpr (Rule::id == RuleId::momentum) {
      o.round_moments(place, &buffer);
      o.m.template write<whole>(place, buffer);
    }
  }

  // Vectors in flight where p and g alone are read.
  static constexpr int loads_at_a_time = lanes == 1 ? 1 : 4;

  // Sums of p and g only. The gradient's scale is linear, and applied to the sums.
  __device__ void gate_stats() const {
    const double scale = o.scalars->rule.grad_scale;
    const int width = width_of_rows(16);
    each_row(width, [&](int, const Row& s, int vectors, int rank) {
      RowSums lane_sums;
      each_round<loads_at_a_time>(s, vectors, rank, width, [&](auto whole, auto count, int j) {
        R p[count], g[count];
#pragma unroll
        for (int n = 0; n < count; ++n) {
          o.p.template read<whole>(o.place(s, j + n * width), p[n]);
          o.g.template read<whole>(o.place(s, j + n * width), g[n]);
        }
#pragma unroll
        for (int n = 0; n < count; ++n) add_products(lane_sums, p[n], g[n], R(0));
      });
      RowSums sums = Group::sum(lane_sums, width, shared);
      if (width > warp_size) Group::sync();  // before the sums of the next row come where these were
      sums.pg *= scale;
      sums.gg *= scale * scale;
      RowStats stats;
      if (vectors > 0 && rank == 0) stats = {sums, o.piece ? 0 : o.scalars->projection.cosine_squared(sums), false};
      collect(stats, width, stats_of_warp);
    });
  }

  // p from the step that `update` has applied to the step that the verdict asks for.
  __device__ void correct(const Verdict& v, bool piece_deferred) const {
    const KernelScalars<Rule>& scalars = *o.scalars;
    const Projection& pr = scalars.projection;
    const Rule rule = scalars.rule;
    const Gate gate = v.gate;
    const int width = width_of_rows(16);
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
      each_elements(s, vectors, rank, width, rule.reads_gradient(), [&](auto whole, const auto& place, auto& e) {
        const R u = e.template direct<false>(o, place, rule);
        if (buffer_too) write_buffer<whole>(place, e.moment[0] - S(c) * e.p);
        o.p.template write<whole>(place, apply(e.p, u, d, k));
      });
    });
  }
};

}  // namespace onepass::cuda
