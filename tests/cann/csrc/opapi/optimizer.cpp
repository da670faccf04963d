// Optimizers.
#include <cmath>

#include "op.h"

using namespace opapi;

// Counts steps from 0: the bias corrections use step + 1 (torch_npu passes state_steps - 1, MindSpore's AdamW
// starts at -1 and adds one). max_v is used with amsgrad only.
ACLNN(aclnnApplyAdamWV2, Out w, Out m, Out v, Out max_v, In grad, In step, float lr, float beta1, float beta2,
      float decay, float eps, bool amsgrad, bool maximize) {
  TYPES(kFloats, w, m, v, grad);
  TYPES(kF32 | kI64, step);
  SAME_SHAPES(w, m, v, grad);
  REQUIRE(!amsgrad || max_v, "amsgrad needs maxGradNorm");
  KERNEL({
    auto g = wide(grad);
    if (maximize) g = -g;
    auto weight = wide(w);
    auto first = wide(m);
    auto second = wide(v);
    double t = step().to(at::kDouble).reshape({}).item<double>() + 1;
    weight = weight * (1 - lr * decay);
    first = first * beta1 + g * (1 - beta1);
    second = second * beta2 + g * g * (1 - beta2);
    auto scale = second;
    if (amsgrad) {
      scale = at::maximum(wide(max_v), second);
      put(max_v, scale);
    }
    auto divisor = (scale / (1 - std::pow(static_cast<double>(beta2), t))).sqrt() + eps;
    put(w, weight - first / divisor * (lr / (1 - std::pow(static_cast<double>(beta1), t))));
    put(m, first);
    put(v, second);
  });
}
