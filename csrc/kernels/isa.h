#pragma once
#include <cstdint>
#include <string>

// Instruction sets: one source per kernel is compiled for each level (foreach_isa.h), chosen at run time.
namespace mindspeed_ms::kernels {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The level in use: the best of this CPU, or the one forced by MINDSPEED_MS_ISA / force_isa.
Isa current_isa();
// The fastest level of this CPU: without bf16 dot products where they are slower than widening to fp32, which
// is measured once. force_isa takes them all the same.
Isa best_isa();
// "portable", "avx2", "avx512", "avx512_bf16" or "auto"; throws std::invalid_argument for an unknown name or
// a level that this CPU lacks.
void force_isa(const std::string& name);
std::string isa_name(Isa isa);

// True when AVX512-BF16 dot products (vdpbf16ps) are used.
inline bool has_bf16_dot() { return current_isa() == Isa::kAvx512Bf16; }

}  // namespace mindspeed_ms::kernels
