#include "kernels/isa.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mindspeed_ms::kernels {
namespace {

constexpr const char* kNames[] = {"portable", "avx2", "avx512", "avx512_bf16"};

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f")
// Seconds that a run of independent vdpbf16ps or FMA instructions takes, the shortest of some.
template <bool kDot>
double instruction_time() {
  using Clock = std::chrono::steady_clock;
  constexpr int kChains = 8, kRounds = 1000, kTries = 9;
  double best = 1.0;
  for (int attempt = 0; attempt < kTries; ++attempt) {
    __m512 sums[kChains] = {}, factor = {};
    const auto start = Clock::now();
    for (int i = 0; i < kRounds; ++i) {
#pragma GCC unroll 8
      for (auto& sum : sums) {
        if constexpr (kDot) {
          asm volatile("vdpbf16ps %1, %1, %0" : "+v"(sum) : "v"(factor));
        } else {
          asm volatile("vfmadd231ps %1, %1, %0" : "+v"(sum) : "v"(factor));
        }
      }
    }
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}
#pragma GCC pop_options

// A dot product multiplies twice as much as an FMA. On some CPUs (Sapphire Rapids, whose bf16 unit is AMX) it
// takes four times as long: there, widening to fp32 is faster.
bool bf16_dot_pays() { return instruction_time<true>() < 1.5 * instruction_time<false>(); }
#endif

// What the CPU can do.
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
    if (level > static_cast<int>(detect())) {
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
  static const Isa best = [] {
    const Isa able = detect();
#if defined(__x86_64__)
    if (able == Isa::kAvx512Bf16 && !bf16_dot_pays()) return Isa::kAvx512;
#endif
    return able;
  }();
  return best;
}

Isa current_isa() { return level().load(std::memory_order_relaxed); }

void force_isa(const std::string& name) { level().store(parse(name), std::memory_order_relaxed); }

std::string isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

}  // namespace mindspeed_ms::kernels
