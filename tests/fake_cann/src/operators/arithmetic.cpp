#include "arithmetic.h"

#include "../chip.h"

#include <arithmetic_aten.h>  // written by build.py

#include <algorithm>
#include <cmath>
#include <cstring>

namespace fake_cann {
namespace {

constexpr int kFp32MantissaBits = 23, kHf32MantissaBits = 11, kTf32MantissaBits = 10;

Arithmetic arithmetic_of(int8_t cube_math_type) {
  if (is_older_chip() || cube_math_type == kUseFp16) return Arithmetic::kFp16;
  bool hf32 = cube_math_type == kAllowFp32DownPrecision || cube_math_type == kUseHf32;
  return hf32 ? Arithmetic::kHf32 : Arithmetic::kFp32;
}

// Numbers below the smallest normal one become zero.
uint32_t fewer_bits(uint32_t bits, int dropped_bits, bool cut_off) {
  constexpr uint32_t kExponentMask = 0x7F800000, kSignMask = 0x80000000;
  uint32_t exponent = bits & kExponentMask;
  if (exponent == kExponentMask) return bits;  // infinity and NaN stay
  if (exponent == 0) return bits & kSignMask;
  uint32_t odd = bits >> dropped_bits & 1;
  if (!cut_off) bits += (1u << (dropped_bits - 1)) - 1 + odd;
  return bits & ~((1u << dropped_bits) - 1);
}

Tensor to_fp16(const Tensor& input) {
  constexpr double kLargest = 65504;
  Tensor wide = saturates() ? at::clamp(input, -kLargest, kLargest) : input;
  return wide.to(at::kHalf);
}

Tensor as_read(const Tensor& input, Arithmetic arithmetic) {
  if (!input.defined() || input.scalar_type() != at::kFloat) return input;
  switch (arithmetic) {
    case Arithmetic::kHf32: return with_mantissa(input, kHf32MantissaBits, false);
    case Arithmetic::kTf32: return with_mantissa(input, kTf32MantissaBits, false);
    case Arithmetic::kBf16: return input.to(at::kBFloat16).to(at::kFloat);
    case Arithmetic::kFp16: return to_fp16(input).to(at::kFloat);
    default: return input;
  }
}

// The sum over `length` terms of an fp32 product, in pieces that `part` computes.
template <class Part>
Tensor in_pieces(int64_t length, int64_t piece, Part part) {
  Tensor sum = part(0, std::min(piece, length));
  for (int64_t start = piece; start < length; start += piece) {
    sum.add_(part(start, std::min(piece, length - start)));
  }
  return sum;
}

Tensor ordered_product(const Tensor& left, const Tensor& right) {
  constexpr int64_t kBlock = 16;  // the cube unit multiplies 16 x 16 x 16 at once
  int64_t length = left.size(-1), row_dim = right.dim() == 1 ? 0 : -2;
  if (left.scalar_type() != at::kFloat || length < 2) return at::matmul(left, right);
  if (options().sum_order == SumOrder::kReversed)
    return at::matmul(at::flip(left, {-1}), at::flip(right, {row_dim}));
  bool blocks = options().sum_order == SumOrder::kBlocks;
  return in_pieces(length, blocks ? kBlock : length / 2, [&](int64_t start, int64_t count) {
    return at::matmul(left.narrow(-1, start, count), right.narrow(row_dim, start, count));
  });
}

bool by_polynomial(const char* function) {
  const auto& named = options().polynomials;
  return std::find(named.begin(), named.end(), function) != named.end();
}

// `part` of each fp32 number, in the type of the input.
template <class Part>
Tensor map(const Tensor& self, Part part) {
  Tensor values = self.to(at::kFloat).contiguous().clone();
  auto* data = static_cast<float*>(values.data_ptr());
  for (int64_t i = 0; i < values.numel(); ++i) data[i] = part(data[i]);
  return values.to(self.scalar_type());
}

// 2^k times a Taylor series of third order: 6e-4 off at worst.
float rough_exp(float x) {
  constexpr float kLn2 = 0.69314718f;
  if (!std::isfinite(x) || std::fabs(x) > 80) return std::exp(x);
  float power = std::nearbyint(x / kLn2), rest = x - power * kLn2;
  return std::ldexp(1 + rest * (1 + rest * (0.5f + rest / 6)), static_cast<int>(power));
}

// Abramowitz and Stegun 7.1.25: 2.5e-5 off at worst.
float rough_erf(float x) {
  float size = std::fabs(x), t = 1 / (1 + 0.47047f * size);
  float tail = t * (0.3480242f + t * (-0.0958798f + t * 0.7478556f)) * std::exp(-size * size);
  return std::copysign(1 - tail, x);
}

// Half the exponent and one step of Newton's method: 1.8e-3 off at worst.
float rough_rsqrt(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = 0x5F3759DF - (bits >> 1);
  float guess;
  memcpy(&guess, &bits, sizeof guess);
  return guess * (1.5f - 0.5f * x * guess * guess);
}

// A Taylor series of seventh order between -pi/2 and pi/2: 1.6e-4 off at worst.
float rough_sin(float x) {
  constexpr float kPi = 3.14159265f;
  float halves = std::nearbyint(x / kPi), rest = x - halves * kPi, square = rest * rest;
  float value = rest * (1 - square / 6 * (1 - square / 20 * (1 - square / 42)));
  return std::fmod(halves, 2.0f) == 0 ? value : -value;
}

float rough_cos(float x) { return rough_sin(x + 1.57079633f); }

}  // namespace

Tensor with_mantissa(const Tensor& input, int bits, bool cut_off) {
  if (!input.defined() || !input.is_floating_point() || bits >= kFp32MantissaBits) return input;
  Tensor values = input.to(at::kFloat).contiguous().clone();
  auto* data = static_cast<uint32_t*>(values.data_ptr());
  for (int64_t i = 0; i < values.numel(); ++i)
    data[i] = fewer_bits(data[i], kFp32MantissaBits - bits, cut_off);
  return values.to(input.scalar_type());
}

Tensor matmul_input(const Tensor& input, int8_t cube_math_type) {
  return as_read(input, options().matmul.value_or(arithmetic_of(cube_math_type)));
}

Tensor convolution_input(const Tensor& input, int8_t cube_math_type) {
  return as_read(input, options().convolution.value_or(arithmetic_of(cube_math_type)));
}

Tensor product(const Tensor& a, const Tensor& b, int8_t cube_math_type) {
  return ordered_product(matmul_input(a, cube_math_type), matmul_input(b, cube_math_type));
}

Tensor product_plus(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                    const Scalar& alpha, int8_t cube_math_type) {
  if (a.scalar_type() != at::kFloat) {  // one rounding, behind the sum
    return a.dim() == 2 ? at::addmm(self, a, b, beta, alpha) : at::baddbmm(self, a, b, beta, alpha);
  }
  Tensor scaled = at::mul(product(a, b, cube_math_type), alpha);
  return beta.toDouble() == 0 ? scaled : at::add(scaled, self, beta);
}

Tensor attention_product(const Tensor& a, const Tensor& b) {
  Arithmetic arithmetic = options().attention.value_or(arithmetic_of(kKeepDtype));
  return ordered_product(as_read(a, arithmetic), as_read(b, arithmetic));
}

Tensor convolution(const Tensor& self, const Tensor& weight, const Tensor& bias, const Ints& stride,
                   const Ints& padding, const Ints& dilation, bool transposed,
                   const Ints& output_padding, int64_t groups, int8_t cube_math_type) {
  Arithmetic arithmetic = options().convolution.value_or(arithmetic_of(cube_math_type));
  Tensor input = as_read(self, arithmetic), filter = as_read(weight, arithmetic);
  bool one_sum = groups == 1 && !transposed && self.scalar_type() == at::kFloat;
  auto of_channels = [&](const Tensor& channels, const Tensor& kernel, const Tensor& added) {
    return at::convolution(channels, kernel, added, stride, padding, dilation, transposed,
                           output_padding, groups);
  };
  Tensor result;
  if (one_sum && options().sum_order == SumOrder::kReversed) {
    result = of_channels(at::flip(input, {1}), at::flip(filter, {1}), bias);
  } else if (one_sum && options().sum_order == SumOrder::kBlocks) {
    result = in_pieces(input.size(1), 1, [&](int64_t start, int64_t count) {
      return of_channels(input.narrow(1, start, count), filter.narrow(1, start, count),
                         start ? Tensor() : bias);
    });
  } else {
    result = of_channels(input, filter, bias);
  }
  bool narrow = arithmetic == Arithmetic::kFp16 && self.scalar_type() == at::kFloat;
  return narrow ? to_fp16(result) : result;
}

namespace vector_unit {

Tensor exp(const Tensor& self) {
  return by_polynomial("exp") ? map(self, rough_exp) : at::exp(self);
}
Tensor erf(const Tensor& self) {
  return by_polynomial("erf") ? map(self, rough_erf) : at::erf(self);
}
Tensor rsqrt(const Tensor& self) {
  return by_polynomial("rsqrt") ? map(self, rough_rsqrt) : at::rsqrt(self);
}
Tensor sin(const Tensor& self) {
  return by_polynomial("sin") ? map(self, rough_sin) : at::sin(self);
}
Tensor cos(const Tensor& self) {
  return by_polynomial("cos") ? map(self, rough_cos) : at::cos(self);
}

Tensor gelu(const Tensor& self, bool tanh_form) {
  if (!tanh_form && !by_polynomial("erf")) return at::gelu(self);
  Tensor x = self.to(at::kFloat);
  if (!tanh_form) return at::mul(at::mul(x, 0.5), vector_unit::erf(at::mul(x, M_SQRT1_2)).add_(1));
  Tensor inner = at::add(x, at::mul(at::mul(x, x), x), 0.044715);
  return at::div(x, vector_unit::exp(inner.mul_(-1.5957691)).add_(1));
}

Tensor softmax(const Tensor& self, int64_t dim) {
  if (!by_polynomial("exp")) return at::softmax(self, dim);
  Tensor x = self.to(at::kFloat), powers = vector_unit::exp(at::sub(x, at::amax(x, dim, true)));
  return at::div(powers, at::sum(powers, dim, true));
}

std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& self, const Ints& shape,
                                              const Tensor& weight, const Tensor& bias,
                                              double eps) {
  if (!by_polynomial("rsqrt")) return at::native_layer_norm(self, shape, weight, bias, eps);
  Ints dims;
  for (size_t i = 1; i <= shape.size(); ++i) dims.push_back(-static_cast<int64_t>(i));
  Tensor x = self.to(at::kFloat), mean = at::mean(x, dims, true);
  Tensor rstd = vector_unit::rsqrt(at::var(x, dims, false, true).add_(eps));
  Tensor out = at::mul(at::sub(x, mean), rstd);
  if (weight.defined()) out = at::mul(out, weight);
  if (bias.defined()) out = at::add(out, bias);
  return {out, mean, rstd};
}

}  // namespace vector_unit
}  // namespace fake_cann
