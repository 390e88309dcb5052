// Where the chip's arithmetic differs from the CPU's, and its random numbers.
#pragma once

#include "operator.h"

namespace fake_cann {

// The input of a matrix product or convolution as the cube unit reads it under `cube_math_type`.
Tensor cube(const Tensor& input, int8_t cube_math_type);

// softmax(query @ key^T * scale) @ value in fp32, with the row maxima and sums that the backward needs.
void attention(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& mask, double scale,
               int64_t sparse_mode, const Out& softmax_max, const Out& softmax_sum, const Out& out);

at::Generator generator(int64_t seed, int64_t offset);

}  // namespace fake_cann
