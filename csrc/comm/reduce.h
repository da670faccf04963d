#pragma once
#include "comm/types.h"

namespace mindspeed_ms::comm {

// True when `op` is defined for elements of type `t` (bitwise ops need integers; AVG and PREMUL_SUM no bool).
bool reduce_supported(DType t, RedOp op);

// dst[i] = finish(src[0][i] op src[1][i] op ... ), evaluated in that order, so that the result depends
// neither on the rank that computes it nor on timing. 16-bit floats accumulate in fp32 and round once, at the
// end.
//   avg: multiplied by 1/`parts` (integers: divided, rounding toward zero);
//   premul_sum: every source is multiplied by `factor` first;
//   bool: SUM is logical or, PRODUCT logical and.
// `dst` may be one of the sources. `n` elements; pointers need no alignment.
void reduce_many(DType t, RedOp op, const void* const* src, int nsrc, void* dst, size_t n, int parts,
                 double factor);

}  // namespace mindspeed_ms::comm
