#include "reduce.h"

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace sim {
namespace {

struct BFloat16 {
  uint16_t bits;
  BFloat16() = default;
  explicit BFloat16(float f) {
    uint32_t x;
    memcpy(&x, &f, 4);
    bits = f != f ? 0x7fc0 : (x + 0x7fff + ((x >> 16) & 1)) >> 16;
  }
  explicit operator float() const {
    uint32_t x = static_cast<uint32_t>(bits) << 16;
    float f;
    memcpy(&f, &x, 4);
    return f;
  }
};

template <class A>
A combine(A a, A b, int op) {
  switch (op) {
    case kSum:
      return a + b;
    case kProduct:
      return a * b;
    case kMaximum:
      return a > b ? a : b;
    default:
      return a < b ? a : b;
  }
}

template <class T, class A = T>
void reduce_as(void* to, const std::vector<const char*>& from, size_t n, int op) {
  for (size_t i = 0; i < n; ++i) {
    auto at = [&](size_t k) { return static_cast<A>(reinterpret_cast<const T*>(from[k])[i]); };
    A a = at(0);
    for (size_t k = 1; k < from.size(); ++k) a = combine<A>(a, at(k), op);
    static_cast<T*>(to)[i] = static_cast<T>(a);
  }
}

struct Dtype {
  const char* name;
  size_t size;
};
// HcclDataType, hccl_types.h
constexpr Dtype kDtypes[] = {{"int8", 1},  {"int16", 2},  {"int32", 4},  {"fp16", 2},   {"fp32", 4},
                             {"int64", 8}, {"uint64", 8}, {"uint8", 1},  {"uint16", 2}, {"uint32", 4},
                             {"fp64", 8},  {"bf16", 2},   {"int128", 16}};
const Dtype& dtype(int code) {
  if (code < 0 || code > 12) throw std::runtime_error("HCCL: unknown dtype " + std::to_string(code));
  return kDtypes[code];
}

}  // namespace

size_t element_size(int code) { return dtype(code).size; }
const char* dtype_name(int code) { return dtype(code).name; }

// HcclAllReduce, HcclReduce, HcclReduceScatter take int8, int16, int32, int64, fp16, fp32, bf16 (HCCL API,
// "dataType"); products of int16 and bf16 are not supported there.
void reduce(void* to, const std::vector<const char*>& from, size_t n, int code, int op) {
  if (op == kProduct && (code == 1 || code == 11))
    throw std::runtime_error(std::string("HCCL: no product of ") + dtype_name(code));
  switch (code) {
    case 0:
      return reduce_as<int8_t, int32_t>(to, from, n, op);
    case 1:
      return reduce_as<int16_t, int32_t>(to, from, n, op);
    case 2:
      return reduce_as<int32_t>(to, from, n, op);
    case 3:
      return reduce_as<_Float16, float>(to, from, n, op);
    case 4:
      return reduce_as<float>(to, from, n, op);
    case 5:
      return reduce_as<int64_t>(to, from, n, op);
    case 11:
      return reduce_as<BFloat16, float>(to, from, n, op);
    default:
      throw std::runtime_error(std::string("HCCL: no reduction of ") + dtype_name(code));
  }
}

}  // namespace sim
