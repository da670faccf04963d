#pragma once
#include <cstddef>
#include <cstdint>

namespace mindspeed_ms::comm {

// Element types a collective can carry. `bits8..bits64` and `complex` payloads travel as one of these.
enum class DType : uint16_t { f64, f32, f16, bf16, i64, i32, i16, i8, u64, u32, u16, u8, boolean, count };

// Numbering of c10d::ReduceOp::RedOpType, so that the bridge passes it through.
enum class RedOp : uint16_t { sum, avg, product, min, max, band, bor, bxor, premul_sum, none };

enum class Kind : uint16_t {
  all_reduce,
  reduce,
  broadcast,
  all_gather,
  reduce_scatter,
  all_to_all,
  gather,
  scatter,
  barrier,
  send,
  recv,
  count
};

size_t dtype_size(DType t);
const char* dtype_name(DType t);
const char* redop_name(RedOp op);
const char* kind_name(Kind k);

}  // namespace mindspeed_ms::comm
