#include "kernels/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace mindspeed_ms::kernels {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

Isa detect() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kPortable;
}

Isa parse(const std::string& name) {
  if (name == "auto") return best_isa();
  for (int level = 0; level < 4; ++level) {
    if (name != kNames[level]) continue;
    if (level > static_cast<int>(best_isa())) {
      throw std::invalid_argument("instruction set '" + name +
                                  "' is not available on this CPU; its best is '" + isa_name(best_isa()) +
                                  "'");
    }
    return static_cast<Isa>(level);
  }
  throw std::invalid_argument("unknown instruction set '" + name +
                              "'; use auto, portable, avx2, avx512 or avx512_bf16");
}

std::atomic<Isa>& level() {
  static std::atomic<Isa> value = [] {
    const char* wish = std::getenv("MINDSPEED_MS_ISA");
    return wish && *wish ? parse(wish) : best_isa();
  }();
  return value;
}

}  // namespace

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa current_isa() { return level().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) { level().store(parse(name), std::memory_order_relaxed); }

std::string isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace mindspeed_ms::kernels
