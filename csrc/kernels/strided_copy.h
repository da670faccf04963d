#pragma once
#include <cstdint>
#include <vector>

#include "kernels/prelude.h"

namespace mindspeed_ms::kernels {

// Copies a strided array into a contiguous one of the same shape; strides in elements, `item` bytes an
// element (1, 2, 4 or 8). Transposes go through tiles that fit the cache.
void copy_to_contiguous(Ptr from, Ptr to, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                        std::int64_t item);

}  // namespace mindspeed_ms::kernels
