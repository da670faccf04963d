// Compiles MSK_SOURCE once per instruction set, each in its own namespace (avx512, avx2, portable).
// Usage:  #define MSK_SOURCE "kernels/norm.inl"
//         #include "kernels/foreach_isa.h"
// The pragma covers only our namespaces: everything included before stays baseline code, so that no inline
// function of the standard library can be emitted with instructions that the CPU may lack. MSK_SOURCE must
// therefore include nothing itself.
#include "kernels/isa.h"
#include "kernels/prelude.h"

#if defined(__x86_64__)

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")
namespace mindspeed_ms::kernels::avx512 {
#define MSK_AVX512 1
#define MSK_AVX2 0
#include "kernels/vec.inl"
#include MSK_SOURCE
#undef MSK_AVX512
#undef MSK_AVX2
}  // namespace mindspeed_ms::kernels::avx512
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
namespace mindspeed_ms::kernels::avx2 {
#define MSK_AVX512 0
#define MSK_AVX2 1
#include "kernels/vec.inl"
#include MSK_SOURCE
#undef MSK_AVX512
#undef MSK_AVX2
}  // namespace mindspeed_ms::kernels::avx2
#pragma GCC pop_options

#endif

namespace mindspeed_ms::kernels::portable {
#define MSK_AVX512 0
#define MSK_AVX2 0
#include "kernels/vec.inl"
#include MSK_SOURCE
#undef MSK_AVX512
#undef MSK_AVX2
}  // namespace mindspeed_ms::kernels::portable

#if !defined(__x86_64__)
namespace mindspeed_ms::kernels {
namespace avx512 = portable;
namespace avx2 = portable;
}  // namespace mindspeed_ms::kernels
#endif

#undef MSK_SOURCE
