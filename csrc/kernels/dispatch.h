#pragma once
#include "binding.h"
#include "kernels/isa.h"

namespace mindspeed_ms::kernels {

// A function with the signature of the three variants that calls the one for the instruction set in use.
template <auto kAvx512, auto kAvx2, auto kPortable>
struct Select;

template <class R, class... Args, R (*kAvx512)(Args...), R (*kAvx2)(Args...), R (*kPortable)(Args...)>
struct Select<kAvx512, kAvx2, kPortable> {
  static R call(Args... args) {
    switch (current_isa()) {
      case Isa::kAvx512Bf16:
      case Isa::kAvx512:
        return kAvx512(args...);
      case Isa::kAvx2:
        return kAvx2(args...);
      case Isa::kPortable:
        break;
    }
    return kPortable(args...);
  }
};

}  // namespace mindspeed_ms::kernels

#define MSK_SELECT(name) (&::mindspeed_ms::kernels::Select<&avx512::name, &avx2::name, &portable::name>::call)

// Binds kernel `name` of the three namespaces as a Python function; then the names of its parameters.
#define MSK_DEF(module, name, ...) DEFINE_WITH_NAMES(module, #name, MSK_SELECT(name), __VA_ARGS__)
