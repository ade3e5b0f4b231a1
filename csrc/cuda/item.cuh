// Access to one work item: its operands, its rows as spans, and the rule applied to one vector of elements.
#pragma once

#include "memory.cuh"
#include "plan.cuh"

namespace onepass::cuda {

template <class Rule>
struct ItemView {
  const DeviceTensor* t;
  const KernelScalars<Rule>* scalars;
  const void* gradient;
  int64_t first_row, first;  // of the item; its first element, counted in elements of the tensor
  int rows, length;
  unsigned tensor;
  bool piece;

  __device__ __forceinline__ ItemView(const WorkItem& item, const DeviceTensor* t, const KernelScalars<Rule>* scalars,
                                      const void* gradient)
      : t(t), scalars(scalars), gradient(gradient), first_row(item.row), tensor(item.tensor) {
    rows = int(item.rows);
    length = int(item.end - item.begin);
    first = item.row * t->length + item.begin;
    piece = length < t->length;
  }
};

// The operands of an item, P as parameters are stored and M as moments. is_packed: elements are accessed 16 bytes at a
// time, else one by one through the strides.
template <class P, class M, class Rule, bool is_packed>
struct Operands : ItemView<Rule> {
  typedef typename Rule::Number S;
  static constexpr int lanes = is_packed ? Vector<P>::lanes : 1;
  static constexpr int at_a_time = lanes == 4 ? 2 : 1;  // vectors; two of float64 would spill
  template <class T, Operand operand>
  using Stream = std::conditional_t<is_packed, Packed<T, operand>, Strided<T, operand>>;
  using ItemView<Rule>::t;

  Stream<P, of_p> p;
  Stream<const P, of_g> g;
  Stream<M, of_m> m;
  Stream<M, of_v> v;

  __device__ __forceinline__ explicit Operands(const ItemView<Rule>& view) : ItemView<Rule>(view) {
    set(p, t->p);
    set(g, const_cast<void*>(this->gradient));
    if (Rule::moments > 0) set(m, t->moment[0]);
    if (Rule::moments > 1) set(v, t->moment[1]);
  }

  __device__ __forceinline__ Span<lanes> row(int r) const {
    const int64_t at = this->first + int64_t(r) * this->length;
    return {at, this->length, int(reinterpret_cast<uint64_t>(p.data + at) / sizeof(P) % lanes)};
  }

  // The place of one vector of a span.
  __device__ __forceinline__ auto place(const Span<lanes>& s, int vector) const {
    if constexpr (is_packed)
      return PackedPlace<lanes>{s, s.at(vector), s.first + s.at(vector)};
    else
      return strided_place<2 + Rule::moments>(t->layout, t->dims, s.first + vector);
  }

 private:
  template <class T, Operand operand>
  __device__ __forceinline__ void set(Packed<T, operand>& x, void* data) const {
    const uint64_t offset_of_p = reinterpret_cast<uint64_t>(t->p) / sizeof(P);
    const bool vectors = (reinterpret_cast<uint64_t>(data) / sizeof(T) - offset_of_p) % Vector<T>::lanes == 0;
    x = {static_cast<T*>(data), vectors};
  }
  template <class T, Operand operand>
  __device__ __forceinline__ void set(Strided<T, operand>& x, void* data) const {
    x = {static_cast<T*>(data)};
  }
};

// One vector of elements.
template <class O, class Rule>
struct Elements {
  typedef typename Rule::Number S;
  static constexpr int lanes = O::lanes;

  S p[lanes], g[lanes], moment[max_moments][lanes];

  template <class Place>
  __device__ __forceinline__ void read(const O& o, const Place& place, bool with_gradient) {
    o.p.read(place, p);
    if (with_gradient) {
      o.g.read(place, g);
    } else {
#pragma unroll
      for (int i = 0; i < lanes; ++i) g[i] = 0;
    }
    if (Rule::moments > 0) o.m.read(place, moment[0]);
    if (Rule::moments > 1) o.v.read(place, moment[1]);
  }

  // The direction u of element i. Makes of g what the rule wants and, if `advancing`, of the moments those of this
  // step.
  template <bool advancing>
  __device__ __forceinline__ S direct(const Rule& rule, int i) {
    S own[max_moments] = {moment[0][i], moment[1][i]};
    g[i] = rule.gradient(p[i], g[i]);
    if (advancing) rule.advance(g[i], own);
#pragma unroll
    for (int j = 0; j < Rule::moments; ++j) moment[j][i] = own[j];
    return rule.direction(p[i], g[i], own);
  }

  template <class Place>
  __device__ __forceinline__ void write_moments(const O& o, const Place& place) const {
    if (Rule::moments > 0) o.m.write(place, moment[0]);
    if (Rule::moments > 1) o.v.write(place, moment[1]);
  }
};

}  // namespace onepass::cuda
