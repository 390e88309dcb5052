#include "helpers.h"

#include <ATen/CPUGeneratorImpl.h>
#include <helpers_aten.h>  // written by build.py

#include <algorithm>
#include <limits>

namespace fake_cann {

Tensor Attention::scores() const {
  constexpr int64_t kCausal = 2;
  Tensor scores =
      attention_product(query.to(at::kFloat), key.to(at::kFloat).transpose(-1, -2)).mul_(scale);
  Tensor hidden = mask;
  if (sparse_mode == kCausal) {
    hidden =
        at::ones({scores.size(-2), scores.size(-1)}, at::TensorOptions().dtype(at::kBool)).triu(1);
  }
  if (hidden.defined())
    scores.masked_fill_(hidden.to(at::kBool), -std::numeric_limits<float>::infinity());
  return scores;
}

Tensor Attention::drop_some(const Tensor& weights) const {
  return keep < 1 && drop_mask.defined() ? drop(weights, drop_mask, 1 - keep) : weights;
}

void Attention::forward(const Out& softmax_max, const Out& softmax_sum, const Out& out) const {
  Tensor scores = this->scores();
  Tensor maxima = at::amax(scores, -1, true);
  softmax_max = maxima.expand(softmax_max.sizes());
  softmax_sum = vector_unit::exp(at::sub(scores, maxima)).sum(-1, true).expand(softmax_sum.sizes());
  out = attention_product(drop_some(vector_unit::softmax(scores, -1)), value.to(at::kFloat));
}

void Attention::backward(const Tensor& grad, const Out& grad_query, const Out& grad_key,
                         const Out& grad_value) const {
  Tensor weights = at::softmax(scores(), -1);
  Tensor wide_grad = grad.to(at::kFloat);
  Tensor grad_weights = drop_some(at::matmul(wide_grad, value.to(at::kFloat).transpose(-1, -2)));
  Tensor grad_scores =
      at::_softmax_backward_data(grad_weights, weights, -1, at::kFloat).mul_(scale);
  grad_query = at::matmul(grad_scores, key.to(at::kFloat));
  grad_key = at::matmul(grad_scores.transpose(-1, -2), query.to(at::kFloat));
  grad_value = at::matmul(drop_some(weights).transpose(-1, -2), wide_grad);
}

void require_plain_attention(const Text& layout, const Tensor& shift) {
  TORCH_CHECK(layout == "BNSD" && !shift.defined(),
              "attention is emulated for the layout BNSD without a shift");
}

at::Generator generator(int64_t seed, int64_t offset) {
  constexpr uint64_t kStride = 1000003;  // a prime, so that neighbouring offsets give other numbers
  return at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed) +
                                                  kStride * static_cast<uint64_t>(offset));
}

at::Generator generator(const Tensor& seed, const Tensor& shift, int64_t offset) {
  return generator(seed.item<int64_t>(), shift.item<int64_t>() + offset);
}

void update_scale(const Tensor& found_inf, double growth, double backoff, int64_t interval,
                  const Out& scale, const Out& growth_tracker) {
  if (found_inf.item<float>() != 0) {
    scale.mul_(backoff);
    growth_tracker.zero_();
  } else if (growth_tracker.item<int>() + 1 == interval) {
    scale.mul_(growth);
    growth_tracker.zero_();
  } else {
    growth_tracker.add_(1);
  }
}

Tensor dropout_mask(const Tensor& mask, double probability, at::Generator generator) {
  Tensor bits = at::empty({mask.numel(), 8}, at::TensorOptions().dtype(at::kByte))
                    .bernoulli_(1 - probability, generator);
  Tensor weights = at::bitwise_left_shift(at::ones({8}, at::kByte), at::arange(8, at::kByte));
  return at::sum(at::mul(bits, weights), 1, false, at::kByte).reshape(mask.sizes());
}

Tensor drop(const Tensor& input, const Tensor& mask, double probability) {
  Tensor bytes = mask.flatten().unsqueeze(1);
  Tensor bits =
      at::bitwise_and(at::bitwise_right_shift(bytes, at::arange(8, at::kByte)), 1).flatten();
  Tensor kept = bits.narrow(0, 0, input.numel()).reshape(input.sizes());
  return at::mul(input, kept).div_(1 - probability);
}

Tensor divide(const Tensor& self, const Tensor& other, int mode) {
  constexpr int kExact = 0, kTowardsZero = 1;
  if (mode == kExact) return at::div(self, other);
  return at::div(self, other, mode == kTowardsZero ? "trunc" : "floor");
}

Tensor scatter(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
               int64_t reduce) {
  static const char* const names[] = {"", "sum", "prod", "amax", "amin"};
  if (reduce == 0) return at::scatter(self, dim, index, source);
  TORCH_CHECK(reduce > 0 && reduce < 5, "scatter: reduction ", reduce);
  return at::scatter_reduce(self, dim, index, source, names[reduce]);
}

Ints all_if_empty(const Ints& dims, const Tensor& self) {
  if (!dims.empty()) return dims;
  Ints all;
  for (int64_t dim = 0; dim < self.dim(); ++dim) all.push_back(dim);
  return all;
}

c10::List<std::optional<Tensor>> optional_indices(const Tensors& indices, bool selects_something) {
  auto is_empty = [](const Tensor& index) {
    return !index.defined() || (index.dim() == 1 && index.numel() == 0);
  };
  // Where all of them are empty, nothing is selected: they are indices without an entry.
  bool all_empty = std::all_of(indices.begin(), indices.end(), is_empty);
  c10::List<std::optional<Tensor>> optional;
  for (const Tensor& index : indices) {
    bool absent = !index.defined() || (is_empty(index) && selects_something && !all_empty);
    optional.push_back(absent ? std::nullopt : std::optional<Tensor>(index));
  }
  return optional;
}

}  // namespace fake_cann
