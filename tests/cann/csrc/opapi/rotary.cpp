// Rotary position embedding: mode 0 rotates halves, mode 1 interleaved pairs.
#include "op.h"

using namespace opapi;

static Tensor rotated(const Tensor& x, int64_t mode) {
  if (mode == 0) {
    auto halves = at::chunk(x, 2, -1);
    return at::cat({-halves[1], halves[0]}, -1);
  }
  auto pairs = x.reshape({-1, 2});
  return at::stack({-pairs.select(1, 1), pairs.select(1, 0)}, 1).reshape(x.sizes());
}

static int check(const char* function, In x, In cos, In sin, int64_t mode) {
  if (int error = refuse_types(function, "x, cos, sin", kFloats, {x, cos, sin})) return error;
  if (x.dim() != 4 || cos.dim() != 4 || sin.p->shape != cos.p->shape)
    return refuse(function, "x, cos and sin must have four dimensions, cos and sin be equal: " +
                                shape_text(x) + ", " + shape_text(cos) + ", " + shape_text(sin));
  if (mode != 0 && mode != 1) return refuse(function, "mode must be 0 (half) or 1 (interleave)");
  // aclnnRotaryPositionEmbedding: the head dimension is at most 896 and divisible by the mode's step.
  if (x.size(-1) > 896 || x.size(-1) % 2)
    return refuse(function, "the head dimension must be even and at most 896");
  return sim::kOk;
}

ACLNN(aclnnRotaryPositionEmbedding, In x, In cos, In sin, int64_t mode, Out out) {
  if (int error = check(__func__, x, cos, sin, mode)) return error;
  SAME_SHAPES(x, out);
  KERNEL({
    auto f = wide(x);
    put(out, f * wide(cos) + rotated(f, mode) * wide(sin));
  });
}
// x may be null: then nobody asks for the gradients of cos and sin.
ACLNN(aclnnRotaryPositionEmbeddingGrad, In grad, In cos, In sin, In x, int64_t mode, Out dx, Out dcos,
      Out dsin) {
  if (int error = check(__func__, grad, cos, sin, mode)) return error;
  SAME_SHAPES(grad, dx);
  KERNEL({
    auto g = wide(grad);
    put(dx, g * wide(cos) - rotated(g * wide(sin), mode));
    if (x) {
      auto f = wide(x);
      if (dcos) put(dcos, (g * f).sum_to_size(dcos().sizes()));
      if (dsin) put(dsin, (g * rotated(f, mode)).sum_to_size(dsin().sizes()));
    }
  });
}
