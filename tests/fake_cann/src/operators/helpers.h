// What some operators need beyond one ATen call.
#pragma once

#include "arithmetic.h"
#include "operator.h"

#include <array>
#include <tuple>

namespace fake_cann {

// Attention over the layout BNSD. torch_npu keeps the scores' row maxima and the sums of their
// exponentials for the backward, which here computes the weights anew.
struct Attention {
  Tensor query, key, value, mask, drop_mask;
  double scale, keep;
  int64_t sparse_mode;

  // softmax(query @ key^T * scale) @ value, in fp32.
  void forward(const Out& softmax_max, const Out& softmax_sum, const Out& out) const;
  void backward(const Tensor& grad, const Out& grad_query, const Out& grad_key,
                const Out& grad_value) const;

 private:
  Tensor scores() const;
  Tensor drop_some(const Tensor& weights) const;
};
// Throws for what is not emulated: another layout, a position shift.
void require_plain_attention(const Text& layout, const Tensor& shift);

at::Generator generator(int64_t seed, int64_t offset);
at::Generator generator(const Tensor& seed, const Tensor& shift, int64_t offset);

// Gradient scaling: less after an infinity was found, more after `interval` steps without one.
void update_scale(const Tensor& found_inf, double growth, double backoff, int64_t interval,
                  const Out& scale, const Out& growth_tracker);

// CANN packs a dropout mask into bits, eight to a byte; a set bit keeps its element.
Tensor dropout_mask(const Tensor& mask, double probability, at::Generator generator);
Tensor drop(const Tensor& input, const Tensor& mask, double probability);

// CANN's rounding modes of a division: 0 exact, 1 towards zero, 2 down.
Tensor divide(const Tensor& self, const Tensor& other, int mode);
// CANN's reductions of a scatter: 0 replace, 1 add, 2 multiply, 3 maximum, 4 minimum.
Tensor scatter(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
               int64_t reduce);

Ints all_if_empty(const Ints& dims, const Tensor& self);

// torch_npu writes a dimension that is not indexed as an empty tensor.
c10::List<std::optional<Tensor>> optional_indices(const Tensors& indices, bool selects_something);

inline std::array<bool, 3> three(const Bools& flags) {
  return {flags.at(0), flags.at(1), flags.at(2)};
}

// Writes a result of several tensors into as many outputs.
template <class... Results, class... Targets>
void write(const std::tuple<Results...>& results, const Targets&... targets) {
  size_t position = 0;
  const Out* outs[] = {&targets...};
  auto write_next = [&](const Tensor& result) {
    if (position == sizeof...(Targets)) return;
    const Out& out = *outs[position++];
    // The CPU's batch norm answers empty statistics where there are none to keep.
    bool kept = out.defined() && result.defined() && (result.numel() || !out.numel());
    if (kept) out = result;
  };
  std::apply([&](const Results&... result) { (write_next(result), ...); }, results);
}
inline void write(const Tensors& results, const Outs& outs) {
  for (size_t i = 0; i < outs.size(); ++i) outs[i] = results.at(i);
}

// Writes the values found, and the position of each element among them and their counts if wanted.
inline void write_unique(const std::tuple<Tensor, Tensor, Tensor>& found, bool want_inverse,
                         bool want_counts, const Out& out, const Out& inverse, const Out& counts) {
  out.shrink_to(std::get<0>(found));
  if (want_inverse) inverse = std::get<1>(found).reshape(inverse.sizes());
  if (want_counts)
    counts.flatten().narrow(0, 0, std::get<2>(found).numel()).copy_(std::get<2>(found));
}

template <class Compute>
void for_each(const Outs& outs, Compute compute) {
  for (size_t i = 0; i < outs.size(); ++i) outs[i] = compute(i);
}

}  // namespace fake_cann
