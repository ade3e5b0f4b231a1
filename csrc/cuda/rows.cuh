// What a crew does to the rows of one item.
#pragma once

#include "crew.cuh"
#include "item.cuh"

namespace onepass::cuda {

template <class Crew, class O, class Rule>
struct Rows {
  typedef typename Rule::Number S;
  static constexpr int lanes = O::lanes;
  typedef Stretch<lanes> Row;

  const Frame& f;
  Board& board;
  const O& o;

  // Moments and p under one affine step. The rows of an item lie one after the other, so they are one stretch.
  __device__ void step() const {
    const Rule rule = o.course->rule;
    const S d = S(o.course->through.d), k = S(o.course->through.k);
    Row s = o.row(0);
    s.length *= o.rows;
    each_vector(s, s.vectors(), Crew::rank(), Crew::size, true, [&](const auto& place, auto& e) {
#pragma unroll
      for (int i = 0; i < lanes; ++i) {
        const S u = e.template direct<true>(rule, i);
        e.p[i] = apply(e.p[i], u, d, k);
      }
      e.write_moments(o, place);
      o.p.write(place, e.p);
    });
  }

  // The sum of squares of g as it lies in memory, over one stretch as in `step`. Leaves the report on the board.
  __device__ void square_sum() const {
    Row s = o.row(0);
    s.length *= o.rows;
    constexpr int at_a_time = lanes == 1 ? 1 : 4;
    const int vectors = s.vectors(), width = Crew::size;
    RowSums own;
    for (int j = Crew::rank(); j < vectors; j += at_a_time * width) {
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
    own = Crew::sum(own, width, board);
    Crew::report(Crew::rank() == 0 ? Report{own} : Report{}, width, board);
  }

  // Calls visit(place, elements) for every width-th vector of a stretch, from `rank` on. Some are read at a time, so
  // that enough bytes are on their way: the compiler cannot move a load above a store that might be to the same place.
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
  __device__ int team_width(int most) const {
    const bool even = o.length % lanes == 0 && o.row(0).phase == 0;
    const int vectors = (o.length + lanes - 1) / lanes + (even ? 0 : 1);
    int width = 1;
    while (width < warp_size && width < vectors) width *= 2;
    return vectors > most * warp_size ? Crew::size : width;
  }

  // Calls visit(row, stretch, vectors, rank) for every row with the lane's rank in its team. All lanes of a warp go
  // through it together; those without a row see no vectors.
  template <class Visit>
  __device__ __forceinline__ void each_row(int width, const Visit& visit) const {
    const int teams = Crew::size / width, team = Crew::rank() / width, rank = Crew::rank() % width;
    for (int first = 0; first < o.rows; first += teams) {
      const bool active = first + team < o.rows;
      const int r = active ? first + team : 0;
      const Row s = o.row(r);
      visit(r, s, active ? s.vectors() : 0, rank);
    }
  }

  // What a lane keeps of a row between its sums and its write: p and u of its elements, one after the other and
  // block_size apart, so that neighbours write to neighbouring banks.
  __device__ int most_kept() const { return f.room_bytes / int(2 * sizeof(S) * lanes * block_size); }
  __device__ static S* kept() { return reinterpret_cast<S*>(onepass_room + sizeof(Board)) + threadIdx.x; }

  __device__ double& coefficient(int r) const { return f.coefficients[o.t->first_coefficient + o.first_row + r]; }

  // Moments and sums of the rows, and p as far as `write` allows. Leaves the report on the board.
  __device__ void update(Write write) const {
    const Rule rule = o.course->rule;
    const int width = team_width(most_kept());
    each_row(width, [&](int r, const Row& s, int vectors, int rank) {
      RowSums lane_sums;
      S* keep = kept();
      each_vector(s, vectors, rank, width, true, [&](const auto& place, auto& e) {
#pragma unroll
        for (int i = 0; i < lanes; ++i, keep += 2 * block_size) {
          const S u = e.template direct<true>(rule, i);
          add_products(lane_sums, e.p[i], e.g[i], u);
          keep[0] = e.p[i];
          keep[block_size] = u;
        }
        e.write_moments(o, place);
      });
      const RowSums sums = Crew::sum(lane_sums, width, board);
      RowStep step{};
      if (width <= warp_size || rank == 0) step = decide(sums, write);
      step = Crew::tell(step, width, board);
      if (!step.left_alone) write_kept(s, vectors, rank, width, step, write);
      Report report;
      if (vectors > 0 && rank == 0) report = report_of(r, sums, step);
      Crew::report(report, width, board);
    });
  }

  __device__ RowStep decide(const RowSums& sums, Write write) const {
    const Projection& pr = o.course->projection;
    const double c = pr.coefficient(sums);
    const Applied done = applied(pr, write, o.course->through, c);
    return {done.step, c, done.left_alone};
  }

  // The report of one row; its coefficient, unless the last crew is to put the row together.
  __device__ Report report_of(int r, const RowSums& sums, const RowStep& step) const {
    if (o.piece) return {sums, 0, step.left_alone};
    store(&coefficient(r), step.c, of_reports);
    return {sums, o.course->projection.cosine_squared(sums), step.left_alone};
  }

  __device__ void write_kept(const Row& s, int vectors, int rank, int width, const RowStep& step, Write write) const {
    const S d = S(step.step.d), k = S(step.step.k), c = S(step.c);
    const bool buffer_too = Rule::moments == 1 && write == Write::hold && o.course->project_momentum;
    const S* keep = kept();
    for (int j = rank; j < vectors; j += width) {
      const auto place = o.place(s, j);
      S p[lanes], b[lanes];
#pragma unroll
      for (int i = 0; i < lanes; ++i, keep += 2 * block_size) {
        const S old_p = keep[0], u = keep[block_size];
        b[i] = u - c * old_p;  // of a buffer that is the direction itself
        p[i] = apply(old_p, u, d, k);
      }
      if (buffer_too) o.m.write(place, b);
      o.p.write(place, p);
    }
  }

  // Sums of p and g only. The gradient's scale is linear, and applied to the sums.
  __device__ void measure() const {
    const double scale = o.course->rule.grad_scale;
    const int width = team_width(16);
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
      RowSums sums = Crew::sum(lane_sums, width, board);
      if (width > warp_size) Crew::sync();  // before the sums of the next row come where these were
      sums.pg *= scale;
      sums.gg *= scale * scale;
      Report report;
      if (vectors > 0 && rank == 0) report = {sums, o.piece ? 0 : o.course->projection.cosine_squared(sums), false};
      Crew::report(report, width, board);
    });
  }

  // p from the step that `update` has applied to the one that the verdict wants.
  __device__ void settle(const DeviceVerdict& v, bool piece_left_alone) const {
    const Course<Rule>& course = *o.course;
    const Projection& pr = course.projection;
    const Rule rule = course.rule;
    const Gate gate = v.gate;
    const int width = team_width(16);
    each_row(width, [&](int r, const Row& s, int vectors, int rank) {
      if (vectors == 0) return;
      const double own = load(&coefficient(r), of_reports), c = gate == Gate::layer ? v.layer_coefficient : own;
      const Applied done = o.piece ? Applied{piece_left_alone ? Affine{0, 0} : course.through, piece_left_alone}
                                   : applied(pr, v.write, course.through, own);
      const Affine wanted = pr.affine(gate, c);
      if (!done.left_alone && done.step == wanted) return;

      const Affine correct = correction(done.step, wanted);
      const S d = S(correct.d), k = S(correct.k);
      const bool buffer_too = Rule::moments == 1 && course.project_momentum && gate != Gate::none;
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
