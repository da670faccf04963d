// Sums, products, extremes of the ranks' bytes, in rank order; 16-bit floats are summed in fp32.
#pragma once
#include <cstddef>
#include <vector>

namespace sim {
size_t element_size(int hccl_dtype);
const char* dtype_name(int hccl_dtype);
enum ReduceOp { kSum, kProduct, kMaximum, kMinimum };
void reduce(void* to, const std::vector<const char*>& from, size_t n, int hccl_dtype, int op);
}  // namespace sim
