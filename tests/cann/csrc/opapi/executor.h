// Executors: a kernel with its arguments, between the two phases and, when it may be repeated, after them.
#pragma once
#include <atomic>
#include <functional>

struct aclOpExecutor {
  const char* function;  // __func__ of its first phase
  std::function<void()> kernel;
  bool needed_in_null_mode, collective;
  bool repeatable = false;
  std::atomic<int> running{0};
};

namespace opapi {
// Runs `end` when no kernel can still need what it destroys: MindSpore destroys descriptors when aclnnX
// returns.
void when_unused(std::function<void()> end);
}  // namespace opapi
