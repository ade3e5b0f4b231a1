// The CPU kernels: rows of a tensor, walked a pack at a time. Compiled once for each instruction set.
#include "kernels.h"

#include <algorithm>
#include <type_traits>

#include "sums.h"

namespace onepass {
namespace ONEPASS_ISA {

// Calls body(i, n) for every pack of a row: n is a constant for a full pack and an int for the tail.
template <int lanes, class Body>
ONEPASS_INLINE void each_pack(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) body(i, std::integral_constant<int, lanes>{});
  if (i < end) body(i, static_cast<int>(end - i));
}

template <class Address, class N>
ONEPASS_INLINE auto load_some(Address from, N n) {
  if constexpr (std::is_same_v<N, int>)
    return load(from, n);
  else
    return load(from);
}
template <class Address, class X, class N>
ONEPASS_INLINE void store_some(Address to, const X& x, N n) {
  if constexpr (std::is_same_v<N, int>)
    store(to, x, n);
  else
    store(to, x);
}

// The gradients of a tile from an element on, of the dtype of their parameters or, where that has 16 bits, of float32.
template <class G>
struct Gradients {
  const void* data;
  int64_t first;
  bool wide;

  template <class N>
  ONEPASS_INLINE auto load(int64_t i, N n) const {
    if constexpr (sizeof(G) == 2)
      if (wide) return load_some(static_cast<const float*>(data) + first + i, n);
    return load_some(static_cast<const G*>(data) + first + i, n);
  }
};

// One row of a tile, typed: P as parameters are stored, M as moments.
template <class P, class M, class Rule>
struct Row {
  typedef typename WorkOf<P>::type S;
  typedef Pack<S> R;
  static constexpr int lanes = R::lanes;
  static constexpr bool is_short = std::is_same_v<M, ShortMoment>, has_blocks = std::is_same_v<M, ByteMoment>;
  static constexpr bool rounds_stochastically = std::is_same_v<P, Stochastic>;

  typename AddressOf<P>::type p;
  Gradients<typename ElementOf<P>::type> g;
  M* moment[2];
  uint8_t* scale[2];  // of the blocks of each moment, if it has any
  int64_t length, first;
  DrawKey draw_key;

  Row(const Tile& t, int64_t row) : length(t.length) {
    int64_t at = row * t.length;
    p = address_of<P>(t, at);
    first = t.first + row * t.next_row;
    draw_key = t.draw_key;
    g = {t.g, at, t.wide_gradient};
    for (int j = 0; j < Rule::moments; ++j) moment[j] = static_cast<M*>(t.moment[j]) + at;
    if constexpr (has_blocks)
      for (int j = 0; j < Rule::moments; ++j) scale[j] = t.scale[j] + row * t.blocks;
  }

  // The codes of a moment from element i on, which are those of one block.
  template <int j>
  ONEPASS_INLINE CodesAddress<j == 0> codes(int64_t i) const {
    return {reinterpret_cast<uint8_t*>(moment[j] + i), scale[j][i / block_length]};
  }

  template <class N>
  ONEPASS_INLINE void load_moments(R* x, int64_t i, N n) const {
    if constexpr (has_blocks) {
      x[0] = load_some(codes<0>(i), n);
      x[1] = load_some(codes<1>(i), n);
    } else {
      for (int j = 0; j < Rule::moments; ++j) x[j] = load_some(moment[j] + i, n);
    }
  }
  template <class N>
  ONEPASS_INLINE void store_moments(const R* x, int64_t i, N n) const {
    if constexpr (has_blocks) {
      store_some(codes<0>(i), x[0], n);
      store_some(codes<1>(i), x[1], n);
    } else {
      for (int j = 0; j < Rule::moments; ++j) store_some(moment[j] + i, x[j], n);
    }
  }

  // The random bits of a pack, if a step takes any of its parameters or of its moments.
  template <bool needed>
  ONEPASS_INLINE auto drawn(int64_t i) const {
    Draws<> bits{};
    if constexpr (needed) draw_into(bits, draw_key, first + i);
    return bits;
  }
  static constexpr bool draws = rounds_stochastically || has_blocks || (is_short && Rule::moments > 1);

  // To what is stored of them, from element i on.
  ONEPASS_INLINE void round_moments(R* x, int64_t i, const Draws<>& bits) const {
    if constexpr (has_blocks) {
      x[0] = rounded_to_codes<true>(x[0], bits, codes<0>(i).scale);
      x[1] = rounded_to_codes<false>(x[1], bits, codes<1>(i).scale);
    } else if constexpr (is_short) {
      x[0] = rounded_to_nearest(x[0]);
      if constexpr (Rule::moments > 1) x[1] = rounded_by<false>(bits, x[1]);
    }
  }

  template <class N>
  ONEPASS_INLINE void store_weights(const R& x, int64_t i, N n, const Draws<>& bits) const {
    if constexpr (rounds_stochastically)
      store_some(reinterpret_cast<ShortMoment*>(p + i), rounded_by<true>(bits, x), n);
    else
      store_some(p + i, x, n);
  }
};

// Steps the moments of the elements of a row from `begin` to `end`, and calls visit(i, n, p, g, u, bits) with each
// pack.
template <class P, class M, class Rule, class Visit>
ONEPASS_INLINE void each_stepped(const Rule& rule, const Row<P, M, Rule>& row, int64_t begin, int64_t end,
                                 const Visit& visit) {
  typedef Pack<typename WorkOf<P>::type> R;
  const auto load_operands = [&](int64_t i, auto n, R& p, R& g, R* moment) ONEPASS_INLINED {
    p = load_some(row.p + i, n);
    g = rule.gradient(p, row.g.load(i, n));
    row.load_moments(moment, i, n);
    rule.advance(g, moment);
  };
  const auto finish = [&](int64_t i, auto n, const R& p, const R& g, R* moment) ONEPASS_INLINED {
    const auto bits = row.template drawn<Row<P, M, Rule>::draws>(i);
    row.round_moments(moment, i, bits);
    const R u = rule.direction(p, g, moment);
    row.store_moments(moment, i, n);
    visit(i, n, p, g, u, bits);
  };
  if constexpr (!Row<P, M, Rule>::has_blocks) {
    each_pack<R::lanes>(begin, end, [&](int64_t i, auto n) ONEPASS_INLINED {
      R p, g, moment[2];
      load_operands(i, n, p, g, moment);
      finish(i, n, p, g, moment);
    });
  } else {
    // The scale of a block follows from all its elements, which the first-level cache holds meanwhile.
    for (int64_t first = begin; first < end; first += block_length) {
      const int64_t last = std::min<int64_t>(first + block_length, end);
      alignas(64) float kept[4][block_length];
      Draws<> largest[2] = {Draws<>(0), Draws<>(0)};
      each_pack<R::lanes>(first, last, [&](int64_t i, auto n) ONEPASS_INLINED {
        R x[4];
        load_operands(i, n, x[0], x[1], x + 2);
        for (int j = 0; j < 4; ++j) store(kept[j] + (i - first), x[j]);
        for (int j = 0; j < 2; ++j) keep_larger(largest[j], x[2 + j]);
      });
      row.scale[0][first / block_length] = Codes<true>::scale_of(largest_of(largest[0]));
      row.scale[1][first / block_length] = Codes<false>::scale_of(largest_of(largest[1]));
      each_pack<R::lanes>(first, last, [&](int64_t i, auto n) ONEPASS_INLINED {
        R x[4];
        for (int j = 0; j < 4; ++j) x[j] = load(kept[j] + (i - first));
        finish(i, n, x[0], x[1], x + 2);
      });
    }
  }
}

template <class P, class M, class Rule>
struct KernelsOf {
  typedef typename WorkOf<P>::type S;
  typedef Pack<S> R;
  static constexpr int lanes = R::lanes;
  static constexpr bool is_stochastic = std::is_same_v<P, Stochastic>;

  static void step(const Tile& t) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const S d = S(t.unprojected.d), k = S(t.unprojected.k);
    for (int64_t r = 0; r < t.rows; ++r) {
      const Row<P, M, Rule> row(t, r);
      each_stepped(rule, row, 0, t.length,
                   [&](int64_t i, auto n, const R& p, const R&, const R& u, const auto& bits)
                       ONEPASS_INLINED { row.store_weights(apply(p, u, d, k), i, n, bits); });
    }
  }

  // Moments and sums of one row. now: p under d and k, the old weights into `cache`; buffered: u
  // into `cache`.
  template <WritePolicy policy>
  static RowSums advance(const Rule& rule, const Row<P, M, Rule>& row, const Affine& a, S* cache) {
    const S d = S(a.d), k = S(a.k);
    Sums<S> sums;
    for (int64_t begin = 0; begin < row.length; begin += Run<S>::elements) {
      Run<S> sum;
      each_stepped(rule, row, begin, std::min(begin + Run<S>::elements, row.length),
                   [&](int64_t i, auto n, const R& p, const R& g, const R& u, const auto& bits) ONEPASS_INLINED {
                     sum.add(p, g, u);
                     if constexpr (policy == WritePolicy::now) {
                       store_some(cache + i, p, n);
                       row.store_weights(apply(p, u, d, k), i, n, bits);
                     }
                     if constexpr (policy == WritePolicy::buffered) store_some(cache + i, u, n);
                   });
      sums.fold(sum);
    }
    return sums.value();
  }

  // Writes back the weights that `advance` has cached.
  static void restore(const Row<P, M, Rule>& row, const S* kept) {
    each_pack<lanes>(0, row.length, [&](int64_t i, auto n) { store_some(row.p + i, R(load_some(kept + i, n)), n); });
  }

  // Writes p under `a` from the cached directions, and the momentum buffer minus c*p if `c` is given.
  static void write_buffered(const Row<P, M, Rule>& row, const S* u_in, const Affine& a, const double* c) {
    const S d = S(a.d), k = S(a.k);
    each_pack<lanes>(0, row.length, [&](int64_t i, auto n) {
      R p = load_some(row.p + i, n), u = load_some(u_in + i, n);
      if (Rule::id == RuleId::momentum && c) project_buffer(row, p, S(*c), i, n);
      row.store_weights(apply(p, u, d, k), i, n, row.template drawn<is_stochastic>(i));
    });
  }

  template <class N>
  static ONEPASS_INLINE void project_buffer(const Row<P, M, Rule>& row, const R& p, S c, int64_t i, N n) {
    if constexpr (Rule::id == RuleId::momentum) {
      R projected = load_some(row.moment[0] + i, n) - c * p;
      row.round_moments(&projected, i, {});
      store_some(row.moment[0] + i, projected, n);
    }
  }

  static RowStats update(const Tile& t) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const Projection& pr = t.scalars->projection;
    S* cache = static_cast<S*>(t.row_cache);
    RowStats stats;
    for (int64_t r = 0; r < t.rows; ++r) {
      const Row<P, M, Rule> row(t, r);
      const RowSums sums = t.policy == WritePolicy::now ? advance<WritePolicy::now>(rule, row, t.unprojected, cache)
                           : t.policy == WritePolicy::buffered
                               ? advance<WritePolicy::buffered>(rule, row, t.unprojected, cache)
                               : advance<WritePolicy::deferred>(rule, row, t.unprojected, cache);
      const RowDecision row_step = decide_row(pr, t.policy, t.unprojected, sums);
      if (t.policy == WritePolicy::now && row_step.deferred) restore(row, cache);
      if (t.policy == WritePolicy::buffered && !row_step.deferred)
        write_buffered(row, cache, row_step.step, t.scalars->project_momentum ? &row_step.c : nullptr);
      stats.deferred |= row_step.deferred;
      stats.sums.add(sums);
      if (t.piece) continue;  // `combine` completes the row
      t.coefficient[r] = row_step.c;
      stats.max_cosine_squared = max_or_nan(stats.max_cosine_squared, pr.cosine_squared(sums));
    }
    return stats;
  }

  // Without the gradient's scale: it is linear, and applied to the sums.
  static RowSums gate_stats_of(const Row<P, M, Rule>& row, double grad_scale) {
    constexpr int64_t run = 2 * Run<S>::elements;
    Sums<S> sums;
    for (int64_t begin = 0; begin < row.length; begin += run) {
      Run<S> even, odd;
      const int64_t end = std::min(begin + run, row.length);
      int64_t i = begin;
      for (; i + 2 * lanes <= end; i += 2 * lanes) {
        R p[2], g[2];
        // Exact weights in the order of float32, whose bits these sums are to have.
        if (std::is_same_v<P, Master> || row.g.wide) {
          constexpr std::integral_constant<int, lanes> all;
          p[0] = load(row.p + i), p[1] = load(row.p + i + lanes);
          g[0] = row.g.load(i, all), g[1] = row.g.load(i + lanes, all);
        } else if constexpr (!std::is_same_v<P, Master>) {
          load_unordered(row.p + i, p[0], p[1]);
          load_unordered(static_cast<const typename ElementOf<P>::type*>(row.g.data) + row.g.first + i, g[0], g[1]);
        }
        even.add(p[0], g[0]);
        odd.add(p[1], g[1]);
      }
      each_pack<lanes>(i, end, [&](int64_t j, auto n) { even.add(load_some(row.p + j, n), row.g.load(j, n)); });
      sums.fold(even);
      sums.fold(odd);
    }
    RowSums total = sums.value();
    total.pg *= grad_scale;
    total.gg *= grad_scale * grad_scale;
    return total;
  }

  static RowStats gate_stats(const Tile& t) {
    const Projection& pr = t.scalars->projection;
    const double grad_scale = grad_scale_of<Rule>(*t.scalars);
    RowStats stats;
    for (int64_t r = 0; r < t.rows; ++r) {
      const RowSums sums = gate_stats_of(Row<P, M, Rule>(t, r), grad_scale);
      stats.sums.add(sums);
      if (!t.piece) stats.max_cosine_squared = max_or_nan(stats.max_cosine_squared, pr.cosine_squared(sums));
    }
    return stats;
  }

  static void correct(const Tile& t, const Decision& s) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const Projection& pr = t.scalars->projection;
    for (int64_t r = 0; r < t.rows; ++r) {
      const double own = t.coefficient[r];
      const Applied done =
          t.piece ? applied_to_piece(s.unprojected, t.deferred) : applied(pr, s.policy, s.unprojected, own);
      const double c = coefficient_under(s.gate, own, s.layer_coefficient);
      const Affine wanted = pr.affine(s.gate, c);
      if (!needs_correction(done, wanted)) continue;

      const Affine a = correction(done.step, wanted);
      const S d = S(a.d), k = S(a.k);
      const bool buffer_too = t.scalars->project_momentum && s.gate != Gate::none;
      const Row<P, M, Rule> row(t, r);
      each_pack<lanes>(0, t.length, [&](int64_t i, auto n) {
        R p = load_some(row.p + i, n), moment[2];
        R g = rule.gradient(p, row.g.load(i, n));
        row.load_moments(moment, i, n);
        R u = rule.direction(p, g, moment);
        if (buffer_too) project_buffer(row, p, S(c), i, n);
        row.store_weights(apply(p, u, d, k), i, n, row.template drawn<is_stochastic>(i));
      });
    }
  }

  static double square_sum(const Tile& t) {
    const Gradients<typename ElementOf<P>::type> g{t.g, 0, t.wide_gradient};
    Total sum;
    each_pack<lanes>(0, t.rows * t.length, [&](int64_t i, auto n) { sum.add_square(g.load(i, n)); });
    return sum.value();
  }

  static constexpr Kernels kernels() {
    // Kernels that write nothing are shared by the storages that are read alike.
    typedef KernelsOf<std::conditional_t<std::is_same_v<P, Stochastic>, BFloat16, P>, S, Rule> Reading;
    return {step, update, Reading::gate_stats, correct, Reading::square_sum};
  }
};

// How the moments of a rule are stored. Of rules with fewer than two there are none in blocks, and of those with none
// there is one kind of kernels.
template <class P, class M, class Rule>
using MomentOf =
    std::conditional_t<(Rule::moments > (std::is_same_v<M, ByteMoment> ? 1 : 0)), M, typename WorkOf<P>::type>;

template <class P, class M, class... Rule>
constexpr std::array<Kernels, sizeof...(Rule)> kernels_of(const std::tuple<Rule...>*) {
  return {KernelsOf<P, MomentOf<P, M, Rule>, Rule>::kernels()...};
}

template <class P, class M>
constexpr std::array<Kernels, rule_count> kernels_of() {
  return kernels_of<P, M>(static_cast<const Rules<typename WorkOf<P>::type>*>(nullptr));
}

// In the order of `storages`.
extern const KernelTable table = {kernels_of<float, float>(),        kernels_of<double, double>(),
                                  kernels_of<BFloat16, float>(),     kernels_of<Half, float>(),
                                  kernels_of<Master, float>(),       kernels_of<Stochastic, float>(),
                                  kernels_of<float, ShortMoment>(),  kernels_of<BFloat16, ShortMoment>(),
                                  kernels_of<Master, ShortMoment>(), kernels_of<Stochastic, ShortMoment>(),
                                  kernels_of<float, ByteMoment>(),   kernels_of<BFloat16, ByteMoment>(),
                                  kernels_of<Master, ByteMoment>(),  kernels_of<Stochastic, ByteMoment>()};

}  // namespace ONEPASS_ISA
}  // namespace onepass
