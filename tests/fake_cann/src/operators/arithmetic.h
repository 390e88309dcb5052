// The chip's arithmetic where it is not the CPU's: how the cube unit reads and adds up, GELU, and
// the approximations that no chip documents and a check has to find.
#pragma once

#include "operator.h"

namespace fake_cann {

// cubeMathType, as CANN's documents of aclnnMm and aclnnConvolution list it. Where the first allows
// a lower precision, the chips that have HF32 take it.
enum CubeMathType : int8_t {
  kKeepDtype = 0,
  kAllowFp32DownPrecision = 1,
  kUseFp16 = 2,
  kUseHf32 = 3
};

// `input` with so many bits of mantissa behind the first, rounded to the nearest with ties to even
// or cut off. Its type stays.
Tensor with_mantissa(const Tensor& input, int bits, bool cut_off);

// An input of a matrix product or convolution as the cube unit reads it under `cube_math_type`;
// only fp32 is ever read as something else.
Tensor matmul_input(const Tensor& input, int8_t cube_math_type);
Tensor convolution_input(const Tensor& input, int8_t cube_math_type);

// Matrix product of the cube unit. It adds up in another order than the CPU: fp32 results differ by
// fp32's own noise, which is also how a test can see that the CPU did not compute.
Tensor product(const Tensor& a, const Tensor& b, int8_t cube_math_type);
// beta * self + alpha * (a @ b), where a beta of 0 ignores NaN in self.
Tensor product_plus(const Tensor& self, const Tensor& a, const Tensor& b, const Scalar& beta,
                    const Scalar& alpha, int8_t cube_math_type);
// The product inside attention, which takes no cubeMathType.
Tensor attention_product(const Tensor& a, const Tensor& b);

// A convolution whose arithmetic is fp16 gives fp16, as CANN's does.
Tensor convolution(const Tensor& self, const Tensor& weight, const Tensor& bias, const Ints& stride,
                   const Ints& padding, const Ints& dilation, bool transposed,
                   const Ints& output_padding, int64_t groups, int8_t cube_math_type);

// Functions of the vector unit: the CPU's own, or the polynomials of FAKECANN_POLYNOMIAL.
namespace vector_unit {

// GELU by the error function, or by the tanh form as CANN's kernel writes it, which keeps more
// digits of a large negative input than 0.5 x (1 + tanh(...)) does: x / (1 + exp(-1.5957691 (x +
// 0.044715 x^3))), in fp32.
Tensor gelu(const Tensor& self, bool tanh_form);

Tensor exp(const Tensor& self);
Tensor erf(const Tensor& self);
Tensor rsqrt(const Tensor& self);
Tensor sin(const Tensor& self);
Tensor cos(const Tensor& self);
Tensor softmax(const Tensor& self, int64_t dim);
std::tuple<Tensor, Tensor, Tensor> layer_norm(const Tensor& self, const Ints& shape,
                                              const Tensor& weight, const Tensor& bias, double eps);

}  // namespace vector_unit
}  // namespace fake_cann
