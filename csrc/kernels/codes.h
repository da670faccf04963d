#pragma once
#include "named_codes.h"

// Codes of the kernels; Python reads them from `_native.kernels` (bind.cpp).
namespace mindspeed_ms::kernels {

// Storage types, by torch's names.
NAMED_CODES(DType, float32, bfloat16, float16)

NAMED_CODES(Unary, copy, sqrt, rsqrt, exp, tanh, sigmoid, neg, abs, reciprocal, square, relu, erf)

NAMED_CODES(Binary, add, sub, mul, div, maximum, minimum)

// How the second operand of a binary operation repeats over (rows, cols): as one row, or as one value per
// row.
NAMED_CODES(Broadcast, one_row, one_per_row)

NAMED_CODES(Activation, gelu_tanh, gelu, quick_gelu, silu, squared_relu)

// Pairs of channels that turn: (i, i + rotary / 2); (2i, 2i + 1); or the latter on input and the former on
// output (DeepSeek's MLA).
NAMED_CODES(RopeLayout, half, interleaved, to_half)

// Softmax over the chosen experts' logits; over all experts, the chosen ones taken; sigmoid, the chosen ones
// divided by their sum (a single one is not).
NAMED_CODES(RouterScore, softmax_of_chosen, softmax_of_all, sigmoid)

}  // namespace mindspeed_ms::kernels
