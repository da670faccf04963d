// Inverses, cross products, distances.
#include "op.h"

using namespace opapi;

ACLNN(aclnnInverse, In self, Out out) {
  TYPES(kFloats, self);
  KERNEL(put(out, at::inverse(wide(self))));
}
ACLNN(aclnnLinalgCross, In self, In other, int64_t dim, Out out) {
  KERNEL(put(out, at::linalg_cross(wide(self), wide(other), dim)));
}
ACLNN(aclnnTriangularSolve, In self, In a, bool upper, bool transposed, bool unit, Out out, Out copy) {
  KERNEL({
    auto [x, kept] = at::triangular_solve(wide(self), wide(a), upper, transposed, unit);
    put(out, x);
    put(copy, kept);
  });
}
ACLNN(aclnnPolar, In absolute, In angle, Out out) { KERNEL(put(out, at::polar(absolute(), angle()))); }
