#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/stack.h>

#include <optional>
#include <vector>

#include "aten/op_info.h"

namespace mindspeed_ms {

// Shapes, strides and dtypes of an operator's results, as meta tensors by torch's meta kernel; nothing where
// it has none, or where the arguments are wrong. `stack` stays as it is.
std::optional<std::vector<at::Tensor>> meta_results(const c10::OperatorHandle& op, const OpInfo& info,
                                                    const torch::jit::Stack& stack);

}  // namespace mindspeed_ms
