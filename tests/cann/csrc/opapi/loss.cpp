// Losses and their gradients.
#include <ATen/core/Reduction.h>

#include "op.h"

using namespace opapi;

ACLNN(aclnnNLLLoss, In self, In target, In weight, int reduction, int64_t ignored, Out out,
      Out total_weight) {
  TYPES(kFloats, self, weight, out);
  TYPES(kIndex | kU8, target);
  KERNEL({
    auto [loss, total] =
        at::nll_loss_forward(wide(self), indices(target), maybe_wide(weight), reduction, ignored);
    put(out, loss);
    put_if(total_weight, total.reshape(total_weight().sizes()));
  });
}
ACLNN(aclnnNLLLossBackward, In grad, In self, In target, In weight, int reduction, int64_t ignored,
      In total_weight, Out out) {
  TYPES(kFloats, grad, self, weight, out);
  KERNEL(put(out, at::nll_loss_backward(wide(grad), wide(self), indices(target), maybe_wide(weight),
                                        reduction, ignored, wide(total_weight).reshape({}))));
}

namespace {
struct Targets {  // of the rows of a cross entropy
  Targets(In target, int64_t ignored)
      : classes(indices(target)),
        counted(classes.ne(ignored)),
        safe(classes.masked_fill(counted.logical_not(), 0)),
        number(std::max<int64_t>(1, counted.sum().item<int64_t>())) {}
  Tensor classes, counted, safe;
  int64_t number;
};
}  // namespace

// MindSpore passes float where the documentation of aclnnCrossEntropyLoss says double; zloss is not
// simulated.
ACLNN(aclnnCrossEntropyLoss, In input, In target, In weight, const char* reduction, int64_t ignored,
      float smoothing, float zloss_scale, bool return_zloss, Out loss, Out log_probability, Out zloss,
      Out lse) {
  TYPES(kFloats, input, loss);
  TYPES(kI64, target);  // aclnnCrossEntropyLoss: target is INT64
  REQUIRE(input.dim() == 2, "input must be a matrix");
  REQUIRE(smoothing == 0, "labelSmoothing must be 0 (aclnnCrossEntropyLoss: \"only 0 is supported\")");
  REQUIRE(zloss_scale == 0 && !return_zloss, "zloss is not supported (lseSquareScaleForZloss must be 0)");
  std::string how = reduction;
  KERNEL({
    Targets t(target, ignored);
    auto logs = at::log_softmax(wide(input), -1);
    auto each = -logs.gather(-1, t.safe.unsqueeze(-1)).squeeze(-1);
    if (weight) each = each * weight().index_select(0, t.safe);
    each = each.masked_fill(t.counted.logical_not(), 0);
    auto total = weight ? weight().index_select(0, t.safe).masked_fill(t.counted.logical_not(), 0).sum()
                        : at::scalar_tensor(t.number);
    auto result = how == "mean" ? each.sum() / total : how == "sum" ? each.sum() : each;
    put(loss, result.reshape(loss().sizes()));
    put_if(log_probability, logs);
  });
}
ACLNN(aclnnCrossEntropyLossGrad, In grad, In log_probability, In target, In weight, In grad_zloss, In lse,
      const char* reduction, int64_t ignored, float smoothing, float zloss_scale, Out out) {
  TYPES(kFloats, grad, log_probability, out);
  TYPES(kI64, target);
  REQUIRE(smoothing == 0 && zloss_scale == 0, "labelSmoothing and lseSquareScaleForZloss must be 0");
  std::string how = reduction;
  KERNEL({
    Targets t(target, ignored);
    auto p = at::exp(wide(log_probability));
    auto d = p.scatter_add(-1, t.safe.unsqueeze(-1), at::full({p.size(0), 1}, -1, p.options()));
    if (weight) d = d * weight().index_select(0, t.safe).unsqueeze(-1);
    auto g = wide(grad);
    if (how == "mean")
      g = g.reshape({}) /
          (weight ? weight().index_select(0, t.safe).masked_fill(t.counted.logical_not(), 0).sum()
                  : at::scalar_tensor(t.number));
    else if (how == "none")
      g = g.reshape({-1, 1});
    else
      g = g.reshape({});
    put(out, (d * g).masked_fill(t.counted.logical_not().unsqueeze(-1), 0));
  });
}

ACLNN(aclnnMseLoss, In self, In target, int reduction, Out out) {
  TYPES(kFloats, self, target);
  KERNEL(put(out, at::mse_loss(wide(self), wide(target), reduction)));
}
ACLNN(aclnnMseLossBackward, In grad, In self, In target, int reduction, Out out) {
  TYPES(kFloats, grad, self, target);
  KERNEL(put(out, at::mse_loss_backward(wide(grad), wide(self), wide(target), reduction)));
}
ACLNN(aclnnL1Loss, In self, In target, int reduction, Out out) {
  KERNEL(put(out, at::l1_loss(wide(self), wide(target), reduction)));
}
ACLNN(aclnnSmoothL1Loss, In self, In target, int reduction, float beta, Out out) {
  KERNEL(put(out, at::smooth_l1_loss(wide(self), wide(target), reduction, beta)));
}
ACLNN(aclnnSmoothL1LossBackward, In grad, In self, In target, int reduction, float beta, Out out) {
  KERNEL(put(out, at::smooth_l1_loss_backward(wide(grad), wide(self), wide(target), reduction, beta)));
}
ACLNN(aclnnKlDiv, In self, In target, int reduction, bool log_target, Out out) {
  KERNEL(put(out, at::kl_div(wide(self), wide(target), reduction, log_target)));
}
ACLNN(aclnnBinaryCrossEntropy, In self, In target, In weight, int reduction, Out out) {
  KERNEL(put(out, at::binary_cross_entropy(wide(self), wide(target), maybe_wide(weight), reduction)));
}
ACLNN(aclnnBinaryCrossEntropyWithLogits, In self, In target, In weight, In positive, int reduction, Out out) {
  KERNEL(put(out, at::binary_cross_entropy_with_logits(wide(self), wide(target), maybe_wide(weight),
                                                       maybe_wide(positive), reduction)));
}
ACLNN(aclnnL1LossBackward, In grad, In self, In target, int reduction, Out out) {
  KERNEL({
    auto x = wide(self);
    auto g = at::sign(x - wide(target)) * wide(grad);
    put(out, reduction == at::Reduction::Mean ? g / x.numel() : g);
  });
}
ACLNN(aclnnKlDivBackward, In grad, In self, In target, int reduction, bool log_target, Out out) {
  KERNEL({
    auto x = wide(self);
    auto t = wide(target);
    auto g = -(log_target ? at::exp(t) : t) * wide(grad);
    put(out, (reduction == at::Reduction::Mean ? g / x.numel() : g).expand(out().sizes()));
  });
}
ACLNN(aclnnBinaryCrossEntropyBackward, In grad, In self, In target, In weight, int reduction, Out out) {
  KERNEL(put(out, at::binary_cross_entropy_backward(wide(grad), wide(self), wide(target), maybe_wide(weight),
                                                    reduction)));
}
ACLNN(aclnnBinaryCrossEntropyWithLogitsBackward, In grad, In self, In target, In weight, In positive,
      int reduction, Out out) {
  KERNEL({
    auto t = wide(target);
    auto s = at::sigmoid(wide(self));
    auto g = positive ? (wide(positive) * t + 1 - t) * s - wide(positive) * t : s - t;
    if (weight) g = g * wide(weight);
    g = g * wide(grad);
    put(out, reduction == at::Reduction::Mean ? g / s.numel() : g);
  });
}
