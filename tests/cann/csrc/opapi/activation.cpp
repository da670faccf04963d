// Activations and their gradients. 16-bit floats are computed in fp32.
#include "op.h"

using namespace opapi;

#define ACTIVATION(name, expression)                   \
  ACLNN(aclnn##name, In self, Out out) {               \
    TYPES(kFloats | kF64, self);                       \
    SAME_SHAPES(self, out);                            \
    KERNEL(auto x = wide(self); put(out, expression)); \
  }
#define ACTIVATION_BACKWARD(name, expression)                               \
  ACLNN(aclnn##name, In grad, In self, Out out) {                           \
    TYPES(kFloats | kF64, grad, self);                                      \
    SAME_SHAPES(grad, self, out);                                           \
    KERNEL(auto g = wide(grad); auto x = wide(self); put(out, expression)); \
  }
ACTIVATION(Sigmoid, at::sigmoid(x))
ACTIVATION(Tanh, at::tanh(x))
ACTIVATION(Silu, at::silu(x))
ACTIVATION(Gelu, at::gelu(x, "tanh"))  // aclnnGelu is the approximation by tanh, aclnnGeluV2 has a choice
ACTIVATION(Mish, at::mish(x))
ACTIVATION(Selu, at::selu(x))
ACTIVATION(Hardswish, at::hardswish(x))
ACTIVATION(Hardsigmoid, at::hardsigmoid(x))
ACTIVATION_BACKWARD(SigmoidBackward, at::sigmoid_backward(g, x))
ACTIVATION_BACKWARD(TanhBackward, at::tanh_backward(g, x))
ACTIVATION_BACKWARD(SiluBackward, at::silu_backward(g, x))
ACTIVATION_BACKWARD(GeluBackward, at::gelu_backward(g, x, "tanh"))
ACTIVATION_BACKWARD(MishBackward, at::mish_backward(g, x))
ACTIVATION_BACKWARD(HardswishBackward, at::hardswish_backward(g, x))
ACTIVATION_BACKWARD(HardsigmoidBackward, at::hardsigmoid_backward(g, x))

ACLNN(aclnnRelu, In self, Out out) {
  TYPES(kFloats | kSigned | kU8, self);
  SAME_SHAPES(self, out);
  KERNEL(put(out, at::relu(wide(self))));
}
ACLNN(aclnnGeluV2, In self, int64_t approximate, Out out) {
  TYPES(kFloats, self);
  SAME_SHAPES(self, out);
  KERNEL(put(out, at::gelu(wide(self), approximate ? "tanh" : "none")));
}
ACLNN(aclnnGeluBackwardV2, In grad, In self, const char* approximate, Out out) {
  TYPES(kFloats, grad, self);
  SAME_SHAPES(grad, self, out);
  std::string how = approximate;
  REQUIRE(how == "none" || how == "tanh", "approximate must be none or tanh");
  KERNEL(put(out, at::gelu_backward(wide(grad), wide(self), how)));
}
ACLNN(aclnnThreshold, In self, Num threshold, Num value, Out out) {
  KERNEL(put(out, at::threshold(wide(self), threshold(), value())));
}
ACLNN(aclnnThresholdBackward, In grad, In self, Num threshold, Out out) {
  TYPES(kFloats | kIntegers, grad, self);
  KERNEL(put(out, at::threshold_backward(wide(grad), wide(self), threshold())));
}
ACLNN(aclnnSoftplus, In self, Num beta, Num threshold, Out out) {
  TYPES(kFloats, self);
  KERNEL(put(out, at::softplus(wide(self), beta(), threshold())));
}
ACLNN(aclnnSoftplusBackward, In grad, In self, Num beta, Num threshold, Out out) {
  TYPES(kFloats, grad, self);
  KERNEL(put(out, at::softplus_backward(wide(grad), wide(self), beta(), threshold())));
}
ACLNN(aclnnLeakyRelu, In self, Num slope, Out out) { KERNEL(put(out, at::leaky_relu(wide(self), slope()))); }
ACLNN(aclnnLeakyReluBackward, In grad, In self, Num slope, bool is_result, Out out) {
  KERNEL(put(out, at::leaky_relu_backward(wide(grad), wide(self), slope(), is_result)));
}
ACLNN(aclnnElu, In self, Num alpha, Num scale, Num input_scale, Out out) {
  KERNEL(put(out, at::elu(wide(self), alpha(), scale(), input_scale())));
}
ACLNN(aclnnEluBackward, In grad, Num alpha, Num scale, Num input_scale, bool is_result, In self, Out out) {
  KERNEL(put(out, at::elu_backward(wide(grad), alpha(), scale(), input_scale(), is_result, wide(self))));
}
ACLNN(aclnnHardtanh, In self, Num low, Num high, Out out) {
  KERNEL(put(out, at::hardtanh(wide(self), low(), high())));
}
ACLNN(aclnnHardtanhBackward, In grad, In self, Num low, Num high, Out out) {
  KERNEL(put(out, at::hardtanh_backward(wide(grad), wide(self), low(), high())));
}
ACLNN(aclnnLogSigmoidForward, In self, Out out, Out buffer) {
  TYPES(kFloats, self);
  KERNEL(put(out, at::log_sigmoid(wide(self))));
}
ACLNN(aclnnLogSigmoidBackward, In grad, In self, In buffer, Out out) {
  TYPES(kFloats, grad, self);
  KERNEL(put(out, wide(grad) * at::sigmoid(-wide(self))));
}
ACLNN(aclnnGlu, In self, int64_t dim, Out out) {
  TYPES(kFloats | kF64, self);
  KERNEL(put(out, at::glu(wide(self), dim)));
}
ACLNN(aclnnGluBackward, In grad, In self, int64_t dim, Out out) {
  TYPES(kFloats | kF64, grad, self);
  KERNEL(put(out, at::glu_backward(wide(grad), wide(self), dim)));
}

// silu of the first half times the second (aclnnSwiGlu).
ACLNN(aclnnSwiGlu, In x, int64_t dim, Out out) {
  TYPES(kFloats, x, out);
  REQUIRE(x.dim() > 0 && x.size(dim) % 2 == 0,
          "the halved dimension of x, " + shape_text(x) + ", must be even");
  KERNEL({
    auto halves = at::chunk(wide(x), 2, dim);
    put(out, at::silu(halves[0]) * halves[1]);
  });
}
ACLNN(aclnnSwiGluGrad, In grad, In x, int64_t dim, Out out) {
  TYPES(kFloats, grad, x, out);
  SAME_SHAPES(x, out);
  REQUIRE(x.dim() > 0 && x.size(dim) % 2 == 0,
          "the halved dimension of x, " + shape_text(x) + ", must be even");
  KERNEL({
    auto halves = at::chunk(wide(x), 2, dim);
    auto g = wide(grad);
    put(out, at::cat({at::silu_backward(g * halves[1], halves[0]), g * at::silu(halves[0])}, dim));
  });
}

ACLNN(aclnnHardshrink, In self, Num lambda, Out out) {
  KERNEL(put(out, at::hardshrink(wide(self), lambda())));
}
ACLNN(aclnnHardshrinkBackward, In grad, In self, Num lambda, Out out) {
  KERNEL(put(out, at::hardshrink_backward(wide(grad), wide(self), lambda())));
}
ACLNN(aclnnSoftshrink, In self, Num lambda, Out out) {
  KERNEL(put(out, at::softshrink(wide(self), lambda())));
}
ACLNN(aclnnSoftshrinkBackward, In grad, In self, Num lambda, Out out) {
  KERNEL(put(out, at::softshrink_backward(wide(grad), wide(self), lambda())));
}
ACLNN(aclnnSeluBackward, In grad, In result, Out out) {
  constexpr double kAlpha = 1.6732632423543772, kScale = 1.0507009873554805;
  KERNEL(put(out, at::elu_backward(wide(grad), kAlpha, kScale, 1, true, wide(result))));
}
ACLNN(aclnnInplaceThreshold, Out self, Num threshold, Num value) {
  KERNEL(put(self, at::threshold(wide(self), threshold(), value())));
}
ACLNN(aclnnInplaceElu, Out self, Num alpha, Num scale, Num input_scale) {
  KERNEL(put(self, at::elu(wide(self), alpha(), scale(), input_scale())));
}
ACLNN(aclnnInplaceHardtanh, Out self, Num low, Num high) {
  KERNEL(put(self, at::hardtanh(wide(self), low(), high())));
}
ACLNN(aclnnPrelu, In self, In weight, Out out) { KERNEL(put(out, at::prelu(wide(self), wide(weight)))); }
