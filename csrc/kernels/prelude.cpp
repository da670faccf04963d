#include "kernels/prelude.h"

#include <unistd.h>

namespace mindspeed_ms::kernels {

bool should_stream(std::int64_t bytes) {
  static const std::int64_t threshold = [] {
    long cache = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    // Half the last-level cache: the inputs pass through it too.
    return cache > 0 ? static_cast<std::int64_t>(cache) / 2 : std::int64_t{16} << 20;
  }();
  return bytes >= threshold;
}

}  // namespace mindspeed_ms::kernels
