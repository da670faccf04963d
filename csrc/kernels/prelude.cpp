#include "kernels/prelude.h"

#include <unistd.h>

namespace mindspeed_ms::kernels {

bool should_stream(std::int64_t bytes, std::size_t item) {
  struct Limits {
    std::int64_t wide = std::int64_t{16} << 20, narrow = wide;
  };
  static const Limits limits = [] {
    Limits found;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const std::int64_t shared = sysconf(_SC_LEVEL3_CACHE_SIZE), own = sysconf(_SC_LEVEL2_CACHE_SIZE);
    // Half the last-level cache: the inputs pass through it too. A shared one of many megabytes is hardly
    // faster than memory: 1.1 to 1.3 times as much was measured past it for outputs of 8 times the core's own
    // cache, in fp32. Stores of half a line (16 lanes of 16 bits) gain nothing.
    if (shared > 0) found.wide = found.narrow = shared / 2;
    if (own > 0) found.wide = std::min(found.wide, 8 * own);
#endif
    return found;
  }();
  return bytes >= (item >= 4 ? limits.wide : limits.narrow);
}

}  // namespace mindspeed_ms::kernels
