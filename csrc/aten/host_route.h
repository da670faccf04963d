#pragma once
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <string>

#include "aten/reasons.h"

namespace mindspeed_ms {

// Runs `op` with torch's own CPU kernel: npu arguments are lent as CPU tensors (no copy on host memory, a
// copy on opaque memory), results are adopted. Counted under route "host", with the reason `why`.
void host_route(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack,
                Reason why);

// What an operator without a kernel of its own for npu does: the host route, unless strict mode forbids it.
void host_fallback(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// The kernel of every operator that is given a sparse tensor of the device, or is to make one: it raises.
void refuse_sparse(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

// Registers host_fallback for the operators whose composite kernels would otherwise come first.
void register_host_kernels();
// Takes that registration of `op` ("aten::mm") back, for a lowering to take its place.
void drop_host_kernel(const std::string& op);

}  // namespace mindspeed_ms
