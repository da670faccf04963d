#include "aten/routes.h"

#include <c10/util/Exception.h>

#include <atomic>
#include <unordered_set>

namespace mindspeed_ms {
namespace {

std::atomic<RouteMode> g_default{RouteMode::Auto};
// Process-wide, not per thread: backward runs on torch's own threads and must see it, too.
std::atomic<int> g_override{-1};

auto& allowed() {
  static auto* names = new std::unordered_set<std::string>;
  return *names;
}

}  // namespace

RouteMode route_mode() noexcept {
  const int mode = g_override.load(std::memory_order_relaxed);
  return mode < 0 ? g_default.load(std::memory_order_relaxed) : static_cast<RouteMode>(mode);
}

void set_default_route_mode(RouteMode mode) { g_default = mode; }

int exchange_route_override(int mode) { return g_override.exchange(mode); }

void allow_on_host(const std::string& op) { allowed().insert(op); }

void require_allowed_on_host(const std::string& op) {
  TORCH_CHECK_NOT_IMPLEMENTED(allowed().count(op), "MINDSPEED_MS_ROUTE=strict: ", op,
                              " has neither a MindSpore nor a csrc kernel for these arguments; use route "
                              "'auto' to run it on torch's CPU "
                              "kernel, or add a lowering for it in mindspeed_ms/ops.");
}

}  // namespace mindspeed_ms
