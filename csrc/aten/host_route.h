#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace mindspeed_ms {

// Runs `op` with torch's own CPU kernel: npu arguments are lent as CPU tensors (no copy on host memory, a copy on
// opaque memory), results are adopted. Counted under route "host".
void host_route(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace mindspeed_ms
