#include "comm/reduce.h"

#include <bit>
#include <stdexcept>
#include <type_traits>

#include "float16.h"

namespace mindspeed_ms::comm {
namespace {

struct Bf16 {
  uint16_t bits;
};
using Kernel = void (*)(const void* const*, int, void*, size_t, int, double);

namespace portable {
#include "comm/reduce_impl.inc"
}
#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#include "comm/reduce_impl.inc"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512")
namespace avx512 {
#include "comm/reduce_impl.inc"
}
#pragma GCC pop_options
#endif

// Bool is 0/1 bytes: or = max, and = min.
RedOp bool_as_uint8(RedOp op) {
  switch (op) {
    case RedOp::SUM:
    case RedOp::BOR:
      return RedOp::MAX;
    case RedOp::PRODUCT:
    case RedOp::BAND:
      return RedOp::MIN;
    case RedOp::AVG:
    case RedOp::PREMUL_SUM:
      return RedOp::none;
    default:
      return op;
  }
}

Kernel find(DType t, RedOp op) {
  if (t == DType::bool_) {
    t = DType::uint8;
    op = bool_as_uint8(op);
  }
#if defined(__x86_64__)
  static const int level = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                                   __builtin_cpu_supports("avx512dq")
                               ? 2
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") ? 1
                                                                                              : 0;
  if (level == 2) return avx512::select_kernel(t, op);
  if (level == 1) return avx2::select_kernel(t, op);
#endif
  return portable::select_kernel(t, op);
}

}  // namespace

bool reduce_supported(DType t, RedOp op) { return find(t, op) != nullptr; }

void reduce_many(DType t, RedOp op, const void* const* src, int nsrc, void* dst, size_t n, int parts,
                 double factor) {
  Kernel kernel = find(t, op);
  if (!kernel) throw std::invalid_argument("reduction not defined for this element type");
  kernel(src, nsrc, dst, n, parts, factor);
}

}  // namespace mindspeed_ms::comm
