#include "aten/routes.h"

#include <c10/util/Exception.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>

#include <atomic>
#include <unordered_set>

#include "runtime/opaque.h"

namespace mindspeed_ms {
namespace {

std::atomic<RouteMode> g_default{RouteMode::Auto};
// Process-wide, not per thread: backward runs on torch's own threads and must see it, too.
std::atomic<int> g_override{-1};

auto& allowed() {
  static auto* names = new std::unordered_set<std::string>;
  return *names;
}

std::string& target() {
  static auto* name = new std::string("CPU");
  return *name;
}

// Why `route` does not take the call; kFirstChoice if it does.
Reason objection(const Offer& offer, const Call& call, Route route) {
  if (call.npu ? route == Route::Csrc && opaque_memory() : route == Route::MindSpore)
    return call.npu ? kOpaque : kElsewhere;
  const uint64_t missing = call.dtypes & ~offer.dtypes(route);
  if (!missing) return kFirstChoice;
  const std::string kernel = std::string(" no ") + route_name(route) + " kernel on " + target();
  if (!offer.dtypes(route)) return reason_of("it has" + kernel);
  const auto dtype = static_cast<at::ScalarType>(__builtin_ctzll(missing));
  return reason_of("dtype " + std::string(torch::getTHPDtype(dtype)->name) + " has" + kernel);
}

// Whether what was measured decides, not a preference. There is no table for memory that has no address.
bool measured(const Offer& offer) {
  const RouteMode mode = route_mode();
  return offer.calibrated && (mode == RouteMode::Auto || mode == RouteMode::Composite) && !opaque_memory();
}

std::array<Route, 2> order() {
  return route_mode() == RouteMode::Csrc ? std::array{Route::Csrc, Route::MindSpore}
                                         : std::array{Route::MindSpore, Route::Csrc};
}

}  // namespace

RouteMode route_mode() noexcept {
  const int mode = g_override.load(std::memory_order_relaxed);
  return mode < 0 ? g_default.load(std::memory_order_relaxed) : static_cast<RouteMode>(mode);
}

void set_default_route_mode(RouteMode mode) { g_default = mode; }

int exchange_route_override(int mode) { return g_override.exchange(mode); }

void set_target(std::string name) { target() = std::move(name); }
bool on_ascend() { return target() == "Ascend"; }

Choice choose(const Offer& offer, const Call& call) {
  const RouteMode mode = route_mode();
  if (mode == RouteMode::Host && call.npu) return {offer.last, kHostForced};
  if (mode == RouteMode::Composite && offer.last == Route::Composite) return {offer.last, kCompositeForced};
  if (call.barrier != kFirstChoice) return {offer.last, call.barrier};
  if (measured(offer)) {
    const auto& fastest = offer.by_size[static_cast<int>(call.dtype)];
    return call.numel < fastest.numel ? Choice{fastest.below, fastest.why_below}
                                      : Choice{fastest.above, fastest.why_above};
  }
  Reason why = kFirstChoice;
  for (const Route route : order()) {
    // A fused kernel's MindSpore form is one for Ascend; an operator's kernel is that of the target.
    if (route == Route::MindSpore && offer.last == Route::Composite && !on_ascend()) {
      if (mode == RouteMode::MindSpore) why = kAscendForm;
      continue;
    }
    const Reason against = objection(offer, call, route);
    if (against == kFirstChoice) return {route, why};
    if (why == kFirstChoice || why == kAscendForm) why = against;
  }
  return {offer.last, why};
}

Choice choose_after(const Offer& offer, const Call& call, Choice declined) {
  const auto [first, second] = order();
  const bool again =
      declined.route == first && !measured(offer) && objection(offer, call, second) == kFirstChoice;
  return {again ? second : offer.last, declined.why};
}

Reason unreadable(const at::Tensor& t) {
  if (t.layout() != at::kStrided) return kLayout;
  return t.is_conj() || t.is_neg() ? kLazy : kFirstChoice;
}

void allow_on_host(const std::string& op) { allowed().insert(op); }

void require_allowed_on_host(const std::string& op, Reason why) {
  TORCH_CHECK_NOT_IMPLEMENTED(allowed().count(op), "MINDSPEED_MS_ROUTE=strict: ", op,
                              " has neither a MindSpore nor a csrc kernel for these arguments (",
                              sentence(why),
                              "); use route 'auto' to run it on torch's CPU kernel, or add a row for it in "
                              "mindspeed_ms/ops.");
}

}  // namespace mindspeed_ms
