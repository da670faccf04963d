#pragma once
// What vec.inl needs from outside the instruction-set namespaces: headers and the storage types.
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "float16.h"
#include "kernels/codes.h"
#include "kernels/pool.h"

#define MSK_INLINE inline __attribute__((always_inline))

namespace mindspeed_ms::kernels {

struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

// An address handed over by Python (tensor.data_ptr()); 0 means "not given".
using Ptr = std::uintptr_t;

template <class T>
T* as(Ptr p) {
  return reinterpret_cast<T*>(p);
}

// True for an output too large to survive in the cache until its reader comes: it is then written past the
// cache, as a normal store first reads the line that it overwrites.
bool should_stream(std::int64_t bytes);

}  // namespace mindspeed_ms::kernels
