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
  int64_t first;  // its first element, counted in elements of the tensor
  int rows, length;
  unsigned tensor;
  bool piece;

  __device__ __forceinline__ ItemView(const DeviceItem& item, const DeviceTensor* t, const KernelScalars<Rule>* scalars,
                                      const void* gradient)
      : t(t), scalars(scalars), gradient(gradient), tensor(item.tensor) {
    piece = item.rows < 0;
    rows = piece ? 1 : item.rows;
    length = piece ? -item.rows : int(t->length);
    first = piece ? item.at : item.at * t->length;
  }
  __device__ __forceinline__ int64_t first_row() const { return first / t->length; }
  __device__ __forceinline__ DrawKey draw_key() const { return scalars->draw_key.with(t->number); }
};

// The operands of an item, P as parameters are stored and M as moments. is_packed: elements are accessed as vectors,
// else one by one through the strides.
template <class P, class M, class Rule, bool is_packed>
struct Operands : ItemView<Rule> {
  typedef typename Rule::Number S;
  static constexpr int lanes = is_packed ? vector_lanes<S> : 1;
  static constexpr int at_a_time = lanes == 4 ? 2 : 1;  // vectors; two of float64 would spill
  template <class T, Operand operand>
  using Stream = std::conditional_t<is_packed, Packed<T, operand>, Strided<T, operand>>;
  typedef typename ElementOf<P>::type Element;
  using ItemView<Rule>::t;

  Weights<P, Stream> p;
  Stream<const Element, of_g> g;
  Stream<M, of_m> m;
  Stream<M, of_v> v;
  bool aligned;  // vectors of all operands lie on their boundaries wherever those of p do

  __device__ __forceinline__ explicit Operands(const ItemView<Rule>& view)
      : ItemView<Rule>(view), p(view.t->p, &view.t->remainder, view.draw_key()) {
    g.data = static_cast<const Element*>(this->gradient);
    aligned = like_p<Element>(this->gradient);
    if (std::is_same_v<P, Master>) aligned &= like_p<MasterRemainder>(t->remainder);
    if (Rule::moments > 0) m.data = static_cast<M*>(t->moment[0]), aligned &= like_p<M>(t->moment[0]);
    if (Rule::moments > 1) v.data = static_cast<M*>(t->moment[1]), aligned &= like_p<M>(t->moment[1]);
  }

  __device__ __forceinline__ Span<lanes> row(int r) const {
    const int64_t at = this->first + int64_t(r) * this->length;
    return {at, this->length, int(reinterpret_cast<uint64_t>(p.address(at)) / sizeof(Element) % lanes)};
  }

  // To what is stored of them.
  template <class Place>
  __device__ __forceinline__ void round_moments([[maybe_unused]] const Place& place,
                                                [[maybe_unused]] Pack<S, lanes>* moment) const {
    if constexpr (std::is_same_v<M, ShortMoment>) {
      const DrawKey key = this->draw_key();  // made anew: `update` has no registers left for it
#pragma unroll
      for (int i = 0; i < lanes; ++i) {
        if (Rule::moments > 0) moment[0].x[i] = rounded_to_nearest(moment[0].x[i]);
        if (Rule::moments > 1) moment[1].x[i] = rounded_up(moment[1].x[i], draw_at(key, place.index + i) >> 16);
      }
    }
  }

  // The place of one vector of a span.
  __device__ __forceinline__ auto place(const Span<lanes>& s, int vector) const {
    if constexpr (is_packed)
      return PackedPlace<lanes>{s, s.at(vector), s.first + s.at(vector)};
    else
      return strided_place<Rule::moments, std::is_same_v<P, Master>>(t->layout, t->dims, s.first + vector);
  }

 private:
  template <class T>
  __device__ __forceinline__ bool like_p(const void* data) const {
    const uint64_t offset_of_p = reinterpret_cast<uint64_t>(t->p) / sizeof(Element);
    return (reinterpret_cast<uint64_t>(data) / sizeof(T) - offset_of_p) % lanes == 0;
  }
};

// One vector of elements.
template <class O, class Rule>
struct Elements {
  typedef Pack<typename Rule::Number, O::lanes> R;

  R p, g, moment[max_moments];

  template <bool whole, class Place>
  __device__ __forceinline__ void read(const O& o, const Place& place, bool with_gradient) {
    o.p.template read<whole>(place, p);
    if (with_gradient)
      o.g.template read<whole>(place, g);
    else
      g = R(0);
    if (Rule::moments > 0) o.m.template read<whole>(place, moment[0]);
    if (Rule::moments > 1) o.v.template read<whole>(place, moment[1]);
  }

  // The direction u. Makes of g what the rule wants and, if `advancing`, of the moments those of this step.
  template <bool advancing, class Place>
  __device__ __forceinline__ R direct(const O& o, const Place& place, const Rule& rule) {
    g = rule.gradient(p, g);
    if (advancing) {
      rule.advance(g, moment);
      o.round_moments(place, moment);
    }
    return rule.direction(p, g, moment);
  }

  template <bool whole, class Place>
  __device__ __forceinline__ void write_moments(const O& o, const Place& place) const {
    if (Rule::moments > 0) o.m.template write<whole>(place, moment[0]);
    if (Rule::moments > 1) o.v.template write<whole>(place, moment[1]);
  }
};

}  // namespace onepass::cuda
