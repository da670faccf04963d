#pragma once
#include <ATen/core/dispatch/Dispatcher.h>

#include "aten/coverage.h"

namespace mindspeed_ms {

enum class ArgKind : uint8_t { Other, Device, Generator, Dtype, Layout, MemoryFormat };

struct ArgInfo {
  ArgKind kind = ArgKind::Other;
  bool written = false;  // the schema says that the operator writes this argument
};

// What the routes need to know of an operator, read once from its schema.
struct OpInfo {
  explicit OpInfo(const c10::OperatorHandle& op);
  std::string name;  // "aten::add.Tensor"
  c10::SmallVector<ArgInfo, 8> args;
  bool writes = false;
  bool mixes_devices = false;  // CPU and npu tensors may meet in it, as CPU and CUDA tensors may
  bool seeded = false;         // draws random numbers although it takes no generator
  OpCounters& counters;
};

const OpInfo& op_info(const c10::OperatorHandle& op);

}  // namespace mindspeed_ms
