#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <string>

#include "aten/coverage.h"

namespace mindspeed_ms {

// What MINDSPEED_MS_ROUTE and the context manager set. auto: the fastest correct implementation; strict:
// MindSpore or csrc, else an error; host: torch's own CPU kernels for everything, fused kernels in torch
// operators; mindspore, csrc, composite: that implementation wherever it takes the call, else as auto
// (composite is one of fused kernels only).
enum class RouteMode : uint8_t { Auto, Strict, Host, MindSpore, Csrc, Composite };

// The mode set by the innermost active context manager, else the default of the process.
RouteMode route_mode() noexcept;
void set_default_route_mode(RouteMode mode);
// Returns the previous value, -1 for "none"; used by the context manager.
int exchange_route_override(int mode);

// MindSpore's device target, "CPU" or "Ascend".
void set_target(std::string name);
bool on_ascend();

inline uint64_t dtype_bit(at::ScalarType dtype) { return uint64_t{1} << static_cast<int>(dtype); }

// The implementations of an operator or of a fused kernel, and what each takes.
struct Offer {
  struct BySize {  // `below` under `numel` elements, `above` from there on
    Route below = Route::Host, above = Route::Host;
    Reason why_below = kUncalibrated, why_above = kUncalibrated;
    int64_t numel = 0;
  };
  Route last = Route::Host;  // takes every call: Host for an operator, Composite for a fused kernel
  uint64_t mindspore_dtypes = 0, csrc_dtypes = 0;
  bool calibrated = false;  // `by_size` holds what was measured to be fastest
  std::array<BySize, kDtypes> by_size{};

  uint64_t dtypes(Route route) const {
    return route == Route::MindSpore ? mindspore_dtypes : route == Route::Csrc ? csrc_dtypes : ~uint64_t{0};
  }
  bool has(Route route, at::ScalarType dtype) const { return dtypes(route) & dtype_bit(dtype); }
};

// What the arguments of a call say.
struct Call {
  uint64_t dtypes = 0;                               // bits of those that an implementation must have
  at::ScalarType dtype = at::ScalarType::Undefined;  // the first of them
  int64_t numel = 0;
  bool npu = true;                // else all tensors are on the host
  Reason barrier = kFirstChoice;  // why no implementation of ours can take it
};

struct Choice {
  Route route;
  Reason why;  // kFirstChoice where nothing spoke against a better one
};

// THE decision, for operators and for fused kernels.
Choice choose(const Offer& offer, const Call& call);
// The next one, after `declined.route` did not take the call for the reason `declined.why`.
Choice choose_after(const Offer& offer, const Call& call, Choice declined);

// Why our kernels cannot read this tensor of any device; kFirstChoice if they can.
Reason unreadable(const at::Tensor& tensor);

// In strict mode only moving data between host and device may run on the host; anything else raises.
void require_allowed_on_host(const std::string& op, Reason why);
void allow_on_host(const std::string& op);

}  // namespace mindspeed_ms
