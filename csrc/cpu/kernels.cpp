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

template <class P, class N>
ONEPASS_INLINE auto load_some(const P* from, N n) {
  if constexpr (std::is_same_v<N, int>)
    return load(from, n);
  else
    return load(from);
}
template <class P, class X, class N>
ONEPASS_INLINE void store_some(P* to, const X& x, N n) {
  if constexpr (std::is_same_v<N, int>)
    store(to, x, n);
  else
    store(to, x);
}

// One row of a tile, typed.
template <class P, class Rule>
struct Row {
  typedef typename WorkOf<P>::type S;
  typedef Pack<S> R;
  static constexpr int lanes = R::lanes;

  P* p;
  const P* g;
  S* moment[2];
  int64_t length;

  Row(const Tile& t, int64_t row) : length(t.length) {
    int64_t at = row * t.length;
    p = static_cast<P*>(t.p) + at;
    g = static_cast<const P*>(t.g) + at;
    for (int j = 0; j < Rule::moments; ++j) moment[j] = static_cast<S*>(t.moment[j]) + at;
  }

  template <class N>
  ONEPASS_INLINE void load_moments(R* x, int64_t i, N n) const {
    for (int j = 0; j < Rule::moments; ++j) x[j] = load_some(moment[j] + i, n);
  }
  template <class N>
  ONEPASS_INLINE void store_moments(const R* x, int64_t i, N n) const {
    for (int j = 0; j < Rule::moments; ++j) store_some(moment[j] + i, x[j], n);
  }
};

template <class P, class Rule>
struct Visit {
  typedef typename WorkOf<P>::type S;
  typedef Pack<S> R;
  static constexpr int lanes = R::lanes;

  static void step(const Tile& t) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const S d = S(t.through.d), k = S(t.through.k);
    for (int64_t r = 0; r < t.rows; ++r) {
      const Row<P, Rule> row(t, r);
      each_pack<lanes>(0, t.length, [&](int64_t i, auto n) {
        R p = load_some(row.p + i, n), moment[2];
        R g = rule.gradient(p, R(load_some(row.g + i, n)));
        row.load_moments(moment, i, n);
        rule.advance(g, moment);
        R u = rule.direction(p, g, moment);
        row.store_moments(moment, i, n);
        store_some(row.p + i, apply(p, u, d, k), n);
      });
    }
  }

  // Moments and sums of one row. through: p under d and k, the weights before into `room`; hold: u into `room`.
  template <Write write>
  static RowSums advance(const Rule& rule, const Row<P, Rule>& row, const Affine& a, S* room) {
    const S d = S(a.d), k = S(a.k);
    Sums<S> sums;
    for (int64_t begin = 0; begin < row.length; begin += Run<S>::elements) {
      Run<S> sum;
      each_pack<lanes>(begin, std::min(begin + Run<S>::elements, row.length), [&](int64_t i, auto n) {
        R p = load_some(row.p + i, n), moment[2];
        R g = rule.gradient(p, R(load_some(row.g + i, n)));
        row.load_moments(moment, i, n);
        rule.advance(g, moment);
        R u = rule.direction(p, g, moment);
        row.store_moments(moment, i, n);
        sum.add(p, g, u);
        if constexpr (write == Write::through) {
          store_some(room + i, p, n);
          store_some(row.p + i, apply(p, u, d, k), n);
        }
        if constexpr (write == Write::hold) store_some(room + i, u, n);
      });
      sums.fold(sum);
    }
    return sums.value();
  }

  // The weights that `advance` kept.
  static void restore(const Row<P, Rule>& row, const S* kept) {
    each_pack<lanes>(0, row.length, [&](int64_t i, auto n) { store_some(row.p + i, R(load_some(kept + i, n)), n); });
  }

  // p under `a` from the directions that were held; the buffer too where `c` is to be taken out of it.
  static void write_held(const Row<P, Rule>& row, const S* u_in, const Affine& a, const double* c) {
    const S d = S(a.d), k = S(a.k);
    each_pack<lanes>(0, row.length, [&](int64_t i, auto n) {
      R p = load_some(row.p + i, n), u = load_some(u_in + i, n);
      if (Rule::moments == 1 && c) project_buffer(row, p, S(*c), i, n);
      store_some(row.p + i, apply(p, u, d, k), n);
    });
  }

  template <class N>
  static ONEPASS_INLINE void project_buffer(const Row<P, Rule>& row, const R& p, S c, int64_t i, N n) {
    if constexpr (Rule::moments == 1) store_some(row.moment[0] + i, R(load_some(row.moment[0] + i, n) - c * p), n);
  }

  static Report update(const Tile& t) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const Projection& pr = t.scalars->projection;
    S* room = static_cast<S*>(t.row_room);
    Report report;
    for (int64_t r = 0; r < t.rows; ++r) {
      const Row<P, Rule> row(t, r);
      const RowSums sums = t.write == Write::through ? advance<Write::through>(rule, row, t.through, room)
                           : t.write == Write::hold  ? advance<Write::hold>(rule, row, t.through, room)
                                                     : advance<Write::defer>(rule, row, t.through, room);
      const double c = pr.coefficient(sums);
      const Applied done = applied(pr, t.write, t.through, c);
      if (t.write == Write::through && done.left_alone) restore(row, room);
      if (t.write == Write::hold && !done.left_alone)
        write_held(row, room, done.step, t.scalars->project_momentum ? &c : nullptr);
      report.deferred |= done.left_alone;
      report.sums.add(sums);
      if (t.piece) continue;  // the verdict puts the row together
      t.coefficient[r] = c;
      report.max_cosine_squared = max_or_nan(report.max_cosine_squared, pr.cosine_squared(sums));
    }
    return report;
  }

  // Without the gradient's scale: it is linear, and applied to the sums.
  static RowSums measure_row(const Row<P, Rule>& row, double grad_scale) {
    constexpr int64_t run = 2 * Run<S>::elements;
    Sums<S> sums;
    for (int64_t begin = 0; begin < row.length; begin += run) {
      Run<S> even, odd;
      const int64_t end = std::min(begin + run, row.length);
      int64_t i = begin;
      for (; i + 2 * lanes <= end; i += 2 * lanes) {
        R p[2], g[2];
        load_unordered(row.p + i, p[0], p[1]);
        load_unordered(row.g + i, g[0], g[1]);
        even.add(p[0], g[0]);
        odd.add(p[1], g[1]);
      }
      each_pack<lanes>(i, end, [&](int64_t j, auto n) { even.add(load_some(row.p + j, n), load_some(row.g + j, n)); });
      sums.fold(even);
      sums.fold(odd);
    }
    RowSums total = sums.value();
    total.pg *= grad_scale;
    total.gg *= grad_scale * grad_scale;
    return total;
  }

  static Report measure(const Tile& t) {
    const Projection& pr = t.scalars->projection;
    const double grad_scale = Rule::moments == 2 ? t.scalars->adam.grad_scale : t.scalars->sgd.grad_scale;
    Report report;
    for (int64_t r = 0; r < t.rows; ++r) {
      const RowSums sums = measure_row(Row<P, Rule>(t, r), grad_scale);
      report.sums.add(sums);
      if (!t.piece) report.max_cosine_squared = max_or_nan(report.max_cosine_squared, pr.cosine_squared(sums));
    }
    return report;
  }

  static void settle(const Tile& t, const Settlement& s) {
    const Rule rule = rule_of<Rule>(*t.scalars);
    const Projection& pr = t.scalars->projection;
    for (int64_t r = 0; r < t.rows; ++r) {
      const Applied done = t.piece ? Applied{t.left_alone ? Affine{0, 0} : s.through, t.left_alone}
                                   : applied(pr, s.write, s.through, t.coefficient[r]);
      const double c = s.verdict == Gate::layer ? s.layer_coefficient : t.coefficient[r];
      const Affine wanted = pr.affine(s.verdict, c);
      if (!done.left_alone && done.step == wanted) continue;

      const Affine a = correction(done.step, wanted);
      const S d = S(a.d), k = S(a.k);
      const bool buffer_too = t.scalars->project_momentum && s.verdict != Gate::none;
      const Row<P, Rule> row(t, r);
      each_pack<lanes>(0, t.length, [&](int64_t i, auto n) {
        R p = load_some(row.p + i, n), moment[2];
        R g = rule.gradient(p, R(load_some(row.g + i, n)));
        row.load_moments(moment, i, n);
        R u = rule.direction(p, g, moment);
        if (buffer_too) project_buffer(row, p, S(c), i, n);
        store_some(row.p + i, apply(p, u, d, k), n);
      });
    }
  }

  static double square_sum(const Tile& t) {
    const P* g = static_cast<const P*>(t.g);
    Total sum;
    each_pack<lanes>(0, t.rows * t.length, [&](int64_t i, auto n) { sum.add_square(R(load_some(g + i, n))); });
    return sum.value();
  }

  static constexpr Kernels kernels() { return {step, update, measure, settle, square_sum}; }
};

template <class P>
struct Families {
  typedef typename WorkOf<P>::type S;
  static constexpr Kernels adam = Visit<P, Adam<S>>::kernels();
  static constexpr Kernels sgd = Visit<P, Sgd<S, true>>::kernels();
  static constexpr Kernels plain_sgd = Visit<P, Sgd<S, false>>::kernels();
};

// In the order of Dtype and Family.
#define ONEPASS_FAMILIES(P) {Families<P>::adam, Families<P>::sgd, Families<P>::plain_sgd}
extern const Kernels table[4][3] = {ONEPASS_FAMILIES(float), ONEPASS_FAMILIES(double), ONEPASS_FAMILIES(BFloat16),
                                    ONEPASS_FAMILIES(Half)};
#undef ONEPASS_FAMILIES

}  // namespace ONEPASS_ISA
}  // namespace onepass
