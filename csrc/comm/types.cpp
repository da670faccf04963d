#include "comm/types.h"

namespace mindspeed_ms::comm {
namespace {

struct DTypeInfo {
  const char* name;
  size_t size;
};
constexpr DTypeInfo kDTypes[] = {
    {"float64", 8}, {"float32", 4}, {"float16", 2}, {"bfloat16", 2}, {"int64", 8}, {"int32", 4}, {"int16", 2},
    {"int8", 1},    {"uint64", 8},  {"uint32", 4},  {"uint16", 2},   {"uint8", 1}, {"bool", 1}};
constexpr const char* kRedOps[] = {"SUM",  "AVG", "PRODUCT", "MIN",        "MAX",
                                   "BAND", "BOR", "BXOR",    "PREMUL_SUM", ""};
constexpr const char* kKinds[] = {"all_reduce",     "reduce",     "broadcast", "all_gather",
                                  "reduce_scatter", "all_to_all", "gather",    "scatter",
                                  "barrier",        "send",       "recv"};
static_assert(sizeof(kDTypes) / sizeof(kDTypes[0]) == static_cast<size_t>(DType::count));
static_assert(sizeof(kKinds) / sizeof(kKinds[0]) == static_cast<size_t>(Kind::count));

}  // namespace

size_t dtype_size(DType t) { return kDTypes[static_cast<size_t>(t)].size; }
const char* dtype_name(DType t) { return t < DType::count ? kDTypes[static_cast<size_t>(t)].name : "?"; }
const char* redop_name(RedOp op) { return op <= RedOp::none ? kRedOps[static_cast<size_t>(op)] : "?"; }
const char* kind_name(Kind k) { return k < Kind::count ? kKinds[static_cast<size_t>(k)] : "?"; }

}  // namespace mindspeed_ms::comm
