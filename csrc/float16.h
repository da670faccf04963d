#pragma once

// IEEE half precision as C++ can convert it. GCC has _Float16 in C++ for x86 since 12, for Arm only since 13;
// Arm's own name is older, and its arithmetic is in float, which is all that we do with either.
namespace mindspeed_ms {

#if defined(__aarch64__)
using Float16 = __fp16;
#else
using Float16 = _Float16;
#endif

}  // namespace mindspeed_ms
