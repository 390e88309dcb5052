#include "numerics.h"

#include <ATen/CPUGeneratorImpl.h>
#include <aten_operators.h>

namespace fake_cann {
namespace {

// cubeMathType, as the documents of aclnnMm and aclnnConvolution list it.
enum CubeMathType : int8_t { kKeepDtype = 0, kAllowFp32DownPrecision = 1, kUseFp16 = 2, kUseHf32 = 3 };

}  // namespace

Tensor cube(const Tensor& input, int8_t cube_math_type) {
  (void)cube_math_type;
  return input;
}

void attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask, double scale,
               int64_t sparse_mode, const Out& softmax_max, const Out& softmax_sum, const Out& out) {
  constexpr int64_t kCausal = 2;
  Tensor scores = at::matmul(query.to(at::kFloat), key.to(at::kFloat).transpose(-1, -2)).mul_(scale);
  Tensor hidden = mask;
  if (sparse_mode == kCausal) {
    hidden = at::ones({scores.size(-2), scores.size(-1)}, at::TensorOptions().dtype(at::kBool)).triu(1);
  }
  if (hidden.defined()) scores.masked_fill_(hidden.to(at::kBool), -std::numeric_limits<float>::infinity());
  Tensor maxima = at::amax(scores, -1, true);
  softmax_max = maxima.expand(softmax_max.sizes());
  softmax_sum = at::exp(at::sub(scores, maxima)).sum(-1, true).expand(softmax_sum.sizes());
  out = at::matmul(at::softmax(scores, -1), value.to(at::kFloat));
}

at::Generator generator(int64_t seed, int64_t offset) {
  constexpr uint64_t kStride = 1000003;  // a prime, so that neighbouring offsets give other streams
  return at::make_generator<at::CPUGeneratorImpl>(static_cast<uint64_t>(seed) + kStride * static_cast<uint64_t>(offset));
}

}  // namespace fake_cann
