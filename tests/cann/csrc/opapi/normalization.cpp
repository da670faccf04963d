// Softmax, layer norm, RMS norm and their gradients; statistics are fp32.
#include "op.h"

using namespace opapi;

ACLNN(aclnnSoftmax, In self, int64_t dim, Out out) {
  TYPES(kFloats | kF64, self, out);
  SAME_SHAPES(self, out);
  KERNEL(put(out, at::softmax(wide(self), dim)));
}
ACLNN(aclnnSoftmaxBackward, In grad, In output, int64_t dim, Out out) {
  TYPES(kFloats | kF64, grad, output, out);
  SAME_SHAPES(grad, output, out);
  KERNEL({
    auto y = wide(output);
    put(out, at::_softmax_backward_data(wide(grad), y, dim, y.scalar_type()));
  });
}
ACLNN(aclnnLogSoftmax, In self, int64_t dim, Out out) {
  TYPES(kFloats | kF64, self, out);
  SAME_SHAPES(self, out);
  KERNEL(put(out, at::log_softmax(wide(self), dim)));
}
ACLNN(aclnnLogSoftmaxBackward, In grad, In output, int64_t dim, Out out) {
  TYPES(kFloats | kF64, grad, output, out);
  SAME_SHAPES(grad, output, out);
  KERNEL({
    auto y = wide(output);
    put(out, at::_log_softmax_backward_data(wide(grad), y, dim, y.scalar_type()));
  });
}

static bool is_suffix(at::IntArrayRef suffix, const aclTensor* t) {
  size_t n = suffix.size();
  return n > 0 && n <= t->shape.size() && std::equal(suffix.begin(), suffix.end(), t->shape.end() - n);
}

ACLNN(aclnnLayerNorm, In x, Ints shape, In weight, In bias, double eps, Out out, Out mean, Out rstd) {
  TYPES(kFloats, x, weight, bias, out);
  REQUIRE(is_suffix(shape(), x),
          "normalizedShape " + c10::str(shape()) + " is not the end of " + shape_text(x));
  KERNEL({
    auto [y, m, r] = at::native_layer_norm(wide(x), shape(), maybe_wide(weight), maybe_wide(bias), eps);
    put(out, y);
    put_if(mean, m);
    put_if(rstd, r);
  });
}
ACLNN(aclnnLayerNormBackward, In grad, In x, Ints shape, In mean, In rstd, In weight, In bias, Bools wanted,
      Out dx, Out dw, Out db) {
  TYPES(kFloats, grad, x, weight, bias);
  REQUIRE(is_suffix(shape(), x),
          "normalizedShape " + c10::str(shape()) + " is not the end of " + shape_text(x));
  KERNEL({
    auto [gx, gw, gb] = at::native_layer_norm_backward(wide(grad), wide(x), shape(), wide(mean), wide(rstd),
                                                       maybe_wide(weight), maybe_wide(bias),
                                                       {dx && wanted[0], dw && wanted[1], db && wanted[2]});
    if (dx && wanted[0]) put(dx, gx);
    if (dw && wanted[1]) put(dw, gw);
    if (db && wanted[2]) put(db, sim::fault("dropped_bias_gradient") ? at::zeros_like(gb) : gb);
  });
}

// The dimensions that a weight of rank n normalizes, and those before them.
static std::vector<int64_t> last_dims(const Tensor& x, int64_t n) {
  std::vector<int64_t> dims;
  for (int64_t i = x.dim() - n; i < x.dim(); ++i) dims.push_back(i);
  return dims;
}
static std::vector<int64_t> first_dims(const Tensor& x, int64_t n) {
  std::vector<int64_t> dims;
  for (int64_t i = 0; i < x.dim() - n; ++i) dims.push_back(i);
  return dims;
}

static void rms_norm(const Tensor& x, const Tensor& weight, double eps, Out out, Out rstd) {
  auto r = at::rsqrt(at::mean(x * x, last_dims(x, weight.dim()), true) + eps);
  put(out, x * r * weight);
  put_if(rstd, r);
}
ACLNN(aclnnRmsNorm, In x, In weight, double eps, Out out, Out rstd) {
  TYPES(kFloats, x, weight, out);
  TYPES(kF32, rstd);
  REQUIRE(is_suffix(weight.p->shape, x),
          "gamma " + shape_text(weight) + " is not the end of x " + shape_text(x));
  KERNEL(rms_norm(wide(x), wide(weight), eps, out, rstd));
}
ACLNN(aclnnRmsNormGrad, In grad, In x, In rstd, In weight, Out dx, Out dw) {
  TYPES(kFloats, grad, x, weight, dx);
  TYPES(kF32, rstd, dw);  // aclnnRmsNormGrad: dgammaOut is FLOAT32 whatever gamma is
  SAME_SHAPES(x, grad, dx);
  KERNEL({
    auto f = wide(x);
    auto g = wide(grad);
    auto w = wide(weight);
    auto r = rstd();
    auto normal = f * r;
    auto gw = g * w;
    put(dx, r * (gw - normal * at::mean(gw * normal, last_dims(f, w.dim()), true)));
    auto lead = first_dims(f, w.dim());
    put(dw, lead.empty() ? g * normal : at::sum(g * normal, lead));
  });
}
ACLNN(aclnnAddRmsNorm, In a, In b, In weight, double eps, Out out, Out rstd, Out sum) {
  TYPES(kFloats, a, b, weight, out, sum);
  TYPES(kF32, rstd);
  SAME_SHAPES(a, b, out, sum);
  KERNEL({
    auto x = wide(a) + wide(b);
    put(sum, x);
    rms_norm(x, wide(weight), eps, out, rstd);
  });
}
ACLNN(aclnnGroupNorm, In x, In weight, In bias, int64_t n, int64_t c, int64_t hw, int64_t groups, double eps,
      Out out, Out mean, Out rstd) {
  TYPES(kFloats, x, weight, bias, out);
  KERNEL({
    auto [y, m, r] = at::native_group_norm(wide(x).contiguous(), maybe_wide(weight), maybe_wide(bias), n, c,
                                           hw, groups, eps);
    put(out, y);
    put(mean, m);
    put(rstd, r);
  });
}
ACLNN(aclnnGroupNormBackward, In grad, In x, In mean, In rstd, In weight, int64_t n, int64_t c, int64_t hw,
      int64_t groups, Bools wanted, Out dx, Out dw, Out db) {
  TYPES(kFloats, grad, x, weight);
  KERNEL({
    auto [gx, gw, gb] =
        at::native_group_norm_backward(wide(grad).contiguous(), wide(x).contiguous(), wide(mean), wide(rstd),
                                       maybe_wide(weight), n, c, hw, groups, {true, true, true});
    if (dx && wanted[0]) put(dx, gx);
    if (dw && wanted[1]) put(dw, gw);
    if (db && wanted[2]) put(db, gb);
  });
}
ACLNN(aclnnAddLayerNorm, In a, In b, In weight, In bias, In added, double eps, bool, Out out, Out mean,
      Out rstd, Out sum) {
  TYPES(kFloats, a, b, weight, bias, out);
  KERNEL({
    auto x = wide(a) + wide(b);
    if (added) x = x + wide(added);
    auto w = wide(weight);
    auto [y, m, r] = at::native_layer_norm(x, w.sizes(), w, wide(bias), eps);
    put(out, y);
    put(mean, m);
    put(rstd, r);
    put_if(sum, x);
  });
}
