#pragma once
#include <cstddef>

#include "named_codes.h"

namespace mindspeed_ms::comm {

// Element types a collective can carry, by torch's names. `bits8..bits64` and `complex` payloads travel as
// one of these.
NAMED_CODES(DType, float64, float32, float16, bfloat16, int64, int32, int16, int8, uint64, uint32, uint16,
            uint8, bool_)

// Names and numbers of c10d::ReduceOp::RedOpType, so that the bridge passes it through; `none` is its UNUSED.
NAMED_CODES(RedOp, SUM, AVG, PRODUCT, MIN, MAX, BAND, BOR, BXOR, PREMUL_SUM, none)

NAMED_CODES(Kind, all_reduce, reduce, broadcast, all_gather, reduce_scatter, all_to_all, gather, scatter,
            barrier, send, recv)

NAMED_CODES(Failure, none, peer_lost, mismatch, timeout, closed, internal)

size_t dtype_size(DType t);

}  // namespace mindspeed_ms::comm
