#pragma once
#include <cstdint>
#include <string>

namespace mindspeed_ms {

// auto: the fastest correct route of each operator and dtype; strict: MindSpore or csrc, else an error;
// host: torch's own CPU kernels for everything.
enum class RouteMode : uint8_t { Auto, Strict, Host };

// The mode set by the innermost active context manager, else the default of the process.
RouteMode route_mode() noexcept;
void set_default_route_mode(RouteMode mode);
// Returns the previous value, -1 for "none"; used by the context manager.
int exchange_route_override(int mode);

// In strict mode only moving data between host and device may run on the host; anything else raises.
void require_allowed_on_host(const std::string& op);
void allow_on_host(const std::string& op);

}  // namespace mindspeed_ms
