// Matrix products. The cube unit multiplies fp16, bf16 and fp32 (cubeMathType says whether fp32 may be
// rounded to HF32: here it never is) and sums in fp32.
#include "op.h"

using namespace opapi;

constexpr unsigned kCube = kFloats;

// A deliberate mistake: the accumulator of an fp16 product holds fp16, 256 times too small for its range.
static Tensor product(Tensor result, at::ScalarType type) {
  if (type == at::kHalf && sim::fault("fp16_overflow"))
    return (result * 256).to(at::kHalf).to(at::kFloat) / 256;
  return result;
}

#define PRODUCT(name, rank_check, function)                                          \
  ACLNN(aclnn##name, In self, In other, Out out, int8_t) {                           \
    TYPES(kCube, self, other, out);                                                  \
    REQUIRE(self.type() == other.type(), "the operands differ in dtype");            \
    REQUIRE(rank_check, "shapes " + shape_text(self) + " and " + shape_text(other)); \
    KERNEL(put(out, product(at::function(wide(self), wide(other)), self.type())));   \
  }
PRODUCT(Matmul, self.dim() > 0 && other.dim() > 0, matmul)
PRODUCT(Mm, self.dim() == 2 && other.dim() == 2 && self.size(1) == other.size(0), mm)
PRODUCT(BatchMatMul, self.dim() == 3 && other.dim() == 3 && self.size(2) == other.size(1), bmm)
PRODUCT(Mv, self.dim() == 2 && other.dim() == 1 && self.size(1) == other.size(0), mv)

ACLNN(aclnnDot, In self, In other, Out out) {
  TYPES(kFloats, self, other);
  KERNEL(put(out, at::dot(wide(self), wide(other))));
}
ACLNN(aclnnAddmm, In self, In a, In b, Num beta, Num alpha, Out out, int8_t) {
  TYPES(kCube, self, a, b, out);
  KERNEL(put(out, product(at::addmm(wide(self), wide(a), wide(b), beta(), alpha()), a.type())));
}
ACLNN(aclnnInplaceAddmm, Out self, In a, In b, Num beta, Num alpha, int8_t) {
  TYPES(kCube, self, a, b);
  KERNEL(put(self, at::addmm(wide(self), wide(a), wide(b), beta(), alpha())));
}
ACLNN(aclnnBaddbmm, In self, In a, In b, Num beta, Num alpha, Out out, int8_t) {
  TYPES(kCube, self, a, b, out);
  KERNEL(put(out, at::baddbmm(wide(self), wide(a), wide(b), beta(), alpha())));
}
ACLNN(aclnnAddbmm, In self, In a, In b, Num beta, Num alpha, Out out, int8_t) {
  TYPES(kCube, self, a, b, out);
  KERNEL(put(out, at::addbmm(wide(self), wide(a), wide(b), beta(), alpha())));
}
ACLNN(aclnnAddmv, In self, In a, In b, Num alpha, Num beta, Out out, int8_t) {
  TYPES(kCube, self, a, b, out);
  KERNEL(put(out, at::addmv(wide(self), wide(a), wide(b), beta(), alpha())));
}
ACLNN(aclnnInplaceAddr, Out self, In a, In b, Num beta, Num alpha) {
  KERNEL(put(self, at::addr(wide(self), wide(a), wide(b), beta(), alpha())));
}
