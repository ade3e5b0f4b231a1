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
  static constexpr bool has_blocks = std::is_same_v<M, ByteMoment>;
  static constexpr int vectors_of_block = block_length / (lanes * warp_size);  // of a lane of the warp that steps it
  static constexpr int at_a_time = lanes == 4 ? 2 : 1;                         // vectors; two of float64 would spill
  template <class T, Operand operand>
  using Stream = std::conditional_t<is_packed, Packed<T, operand>, Strided<T, operand>>;
  typedef typename ElementOf<P>::type Element;
  using ItemView<Rule>::t;

  Weights<P, Stream> p;
  Gradients<Element, Stream> g;
  Stream<M, of_m> m;
  Stream<M, of_v> v;
  bool aligned;  // vectors of all operands lie on their boundaries wherever those of p do

  __device__ __forceinline__ explicit Operands(const ItemView<Rule>& view)
      : ItemView<Rule>(view),
        p(view.t->p, &view.t->remainder, {&view.scalars->draw_key, &view.t->number, &view.t->whole_place}) {
    g = {this->gradient, &t->wide_gradient};
    aligned = g.is_wide() ? like_p<float>(this->gradient) : like_p<Element>(this->gradient);
    if (std::is_same_v<P, Master>) aligned &= like_p<MasterRemainder>(t->remainder);
    if (Rule::moments > 0) m.data = static_cast<M*>(t->moment[0]), aligned &= like_p<M>(t->moment[0]);
    if (Rule::moments > 1) v.data = static_cast<M*>(t->moment[1]), aligned &= like_p<M>(t->moment[1]);
  }

  // Where moments have blocks, vectors begin with the row, wherever it lies.
  __device__ __forceinline__ Span<lanes> row(int r) const {
    const int64_t at = this->first + int64_t(r) * this->length;
    return {at, this->length, has_blocks ? 0 : phase_of(at)};
  }

  // Of a row with blocks: whether all its vectors are whole, and lie on their boundaries in all operands.
  __device__ __forceinline__ bool are_whole(const Span<lanes>& s) const {
    return lanes > 1 && aligned && phase_of(s.first) == 0 && s.length % lanes == 0;
  }

  // The number of the block of an element, among those of all rows. 32 bits, as rows are of 64 elements or more: no
  // device has the memory of 2^38 elements.
  __device__ __forceinline__ unsigned block_of(int64_t index) const {
    const int64_t row = index / t->length;
    return unsigned(row * blocks_of(t->length) + (index - row * t->length) / block_length);
  }
  // Of a moment; all lanes of a warp mostly read that of one block, once from memory.
  template <int j>
  __device__ __forceinline__ uint32_t scale(unsigned block, [[maybe_unused]] bool first_of_block) const {
    const uint8_t* const from = t->scale[j] + block;
    if (first_of_block) {
      ONEPASS_TRACE(j == 0 ? of_m : of_v, 1, false);
    }
    ONEPASS_GLOBAL(from);
    return *from;
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
        if (Rule::moments > 1)
          moment[1].x[i] = rounded_up(moment[1].x[i], draw_at(key, place.in_whole(t->whole_place) + i) >> 16);
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
  __device__ __forceinline__ int phase_of(int64_t at) const {
    return int(reinterpret_cast<uint64_t>(p.address(at)) / sizeof(Element) % lanes);
  }
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
    if constexpr (O::has_blocks) {
      static_assert(!advancing, "a block is stepped by a warp");
      const unsigned block = o.block_of(place.index);
      const bool first = place.index % block_length == 0;
      decode(o.template scale<0>(block, first), o.template scale<1>(block, first));
    }
    if (advancing) {
      rule.advance(g, moment);
      o.round_moments(place, moment);
    }
    return rule.direction(p, g, moment);
  }

  // Moments of their codes.
  __device__ __forceinline__ void decode(uint32_t scale_of_m, uint32_t scale_of_v) {
#pragma unroll
    for (int i = 0; i < O::lanes; ++i) {
      moment[0].x[i] = float_of(Codes<true>::number_of(bits_of(moment[0].x[i]), scale_of_m));
      moment[1].x[i] = float_of(Codes<false>::number_of(bits_of(moment[1].x[i]), scale_of_v));
    }
  }

  // The bits of the largest moments, sign aside.
  __device__ __forceinline__ void keep_larger(uint32_t& m, uint32_t& v) const {
    const auto larger = [](uint32_t a, float x) {
      const uint32_t b = bits_of(x) & Codes<true>::magnitude_mask;
      return a < b ? b : a;
    };
#pragma unroll
    for (int i = 0; i < O::lanes; ++i) m = larger(m, moment[0].x[i]), v = larger(v, moment[1].x[i]);
  }

  // Makes of moments what is stored of them under new scales, and writes their codes.
  template <bool whole, class Place>
  __device__ __forceinline__ void write_codes(const O& o, const Place& place, uint32_t scale_of_m,
                                              uint32_t scale_of_v) {
    R code;
#pragma unroll
    for (int i = 0; i < O::lanes; ++i) {
      const uint32_t m = Codes<true>::stored(bits_of(moment[0].x[i]), 0u, scale_of_m);
      moment[0].x[i] = float_of(m), code.x[i] = float_of(Codes<true>::code_of(m, scale_of_m));
    }
    o.m.template write<whole>(place, code);
    const DrawKey key = o.draw_key();
#pragma unroll
    for (int i = 0; i < O::lanes; ++i) {
      const uint32_t up = draw_at(key, place.in_whole(o.t->whole_place) + i) >> (32 - Codes<false>::dropped_bits);
      const uint32_t v = Codes<false>::stored(bits_of(moment[1].x[i]), up, scale_of_v);
      moment[1].x[i] = float_of(v), code.x[i] = float_of(Codes<false>::code_of(v, scale_of_v));
    }
    o.v.template write<whole>(place, code);
  }

  template <bool whole, class Place>
  __device__ __forceinline__ void write_moments(const O& o, const Place& place) const {
    if (Rule::moments > 0) o.m.template write<whole>(place, moment[0]);
    if (Rule::moments > 1) o.v.template write<whole>(place, moment[1]);
  }
};

}  // namespace onepass::cuda
