#pragma once
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include <array>
#include <mutex>
#include <string>

#include "aten/coverage.h"
#include "aten/routes.h"
#include "runtime/opaque.h"

namespace mindspeed_ms {

// MindSpore on CPU crashes when two threads run it at once; backward threads and the main thread take turns.
std::recursive_mutex& mindspore_mutex();

// How an overload relates to the functional operator whose kernel it uses.
enum class Form : uint8_t { Functional, InPlace, Out };

// The kernels of one functional operator and when each may be used.
struct Lowering {
  struct Auto {  // route "auto" by size: `below` under `numel` elements, `above` from there on
    Route below = Route::Host, above = Route::Host;
    int64_t numel = 0;
  };

  std::string name;
  pybind11::object mindspore, csrc;  // None where there is no such kernel
  pybind11::object
      csrc_in_place;  // writes its first argument; None where the result of `csrc` is copied there
  uint64_t mindspore_dtypes = 0, csrc_dtypes = 0;
  std::array<Auto, kDtypes> automatic{};
  size_t key_arg = 0;     // the tensor argument whose dtype decides
  bool mixed = false;     // other tensor arguments may have other dtypes
  bool promotes = false;  // tensor arguments from key_arg on are cast to torch's common dtype, which decides
  bool strided = false;   // the kernels read any strides; else they are given contiguous tensors
  bool csrc_widens = false;  // the csrc kernel reads 16-bit tensors beside a float32 key as they are
  OpCounters* counters = nullptr;

  bool has(Route route, at::ScalarType dtype) const {
    const uint64_t bit = uint64_t{1} << static_cast<int>(dtype);
    return route == Route::MindSpore ? (mindspore_dtypes & bit)
           : route == Route::Csrc    ? (csrc_dtypes & bit)
                                     : true;
  }

  Route choose(at::ScalarType dtype, int64_t numel) const {
    if (route_mode() == RouteMode::Auto && !opaque_memory()) {
      const auto& a = automatic[static_cast<int>(dtype)];
      return numel < a.numel ? a.below : a.above;
    }
    if (has(Route::MindSpore, dtype)) return Route::MindSpore;
    // csrc kernels take addresses, which opaque memory does not have.
    if (has(Route::Csrc, dtype) && !opaque_memory()) return Route::Csrc;
    return Route::Host;
  }
};

// The npu kernel of an overload. `lowering` outlives the interpreter: the dispatcher destroys its kernels
// after Python has gone.
torch::CppFunction lowered(const Lowering* lowering, Form form);

}  // namespace mindspeed_ms
