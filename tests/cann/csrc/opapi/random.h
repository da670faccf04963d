// Philox 4x32-10, counter-based: the stream is a function of seed and offset alone.
#pragma once
#include <ATen/ATen.h>

namespace opapi {
at::Tensor random_bits(int64_t n, uint64_t seed, uint64_t offset);     // int64, 32 random bits each
at::Tensor random_uniform(int64_t n, uint64_t seed, uint64_t offset);  // fp32 in [0, 1)
at::Tensor random_normal(int64_t n, uint64_t seed, uint64_t offset);   // fp32, Box-Muller
// Dropout masks are bits, eight elements to a byte, the lowest first.
at::Tensor packed_mask(int64_t n, double drop, uint64_t seed, uint64_t offset);
at::Tensor unpacked_mask(const at::Tensor& mask, int64_t n);  // bool: kept
}  // namespace opapi
