#include "kernels/prelude.h"

#include <unistd.h>

namespace mindspeed_ms::kernels {

bool should_stream(std::int64_t bytes) {
  static const std::int64_t limit = [] {
    std::int64_t found = std::int64_t{16} << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const std::int64_t shared = sysconf(_SC_LEVEL3_CACHE_SIZE), own = sysconf(_SC_LEVEL2_CACHE_SIZE);
    // Half the last-level cache: the inputs pass through it too. A shared one of many megabytes is hardly
    // faster than memory: 1.1 to 1.5 times as much was measured past it for outputs of twice the core's own
    // cache, and a training step, which reads them again, takes the same time.
    if (shared > 0) found = shared / 2;
    if (own > 0) found = std::min(found, 2 * own);
#endif
    return found;
  }();
  return bytes >= limit;
}

}  // namespace mindspeed_ms::kernels
