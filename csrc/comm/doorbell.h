#pragma once
#include <atomic>
#include <cstdint>

namespace mindspeed_ms::comm {

// A futex word in shared memory. Whoever changes something its owner may be waiting for rings it; the owner
// reads `value` before looking for work and sleeps only if it is unchanged afterwards, so that no ring is
// lost.
struct alignas(64) Doorbell {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;

  void ring();
  // Sleeps until `value` differs from `seen`, at most `ns` nanoseconds. May return early.
  void wait(uint32_t seen, int64_t ns);
};

}  // namespace mindspeed_ms::comm
