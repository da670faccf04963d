// Convolution, pooling, padding: what vision towers and state-space models use.
#include "op.h"

using namespace opapi;

static Tensor convolved(In x, In weight, In bias, Ints stride, Ints padding, Ints dilation, bool transposed,
                        Ints output_padding, int64_t groups) {
  return at::convolution(wide(x), wide(weight), maybe_wide(bias), stride(), padding(), dilation(), transposed,
                         output_padding(), groups);
}
ACLNN(aclnnConvolution, In x, In weight, In bias, Ints stride, Ints padding, Ints dilation, bool transposed,
      Ints output_padding, int64_t groups, Out out, int8_t) {
  TYPES(kFloats, x, weight, bias, out);
  REQUIRE(x.type() == weight.type(), "input and weight differ in dtype");
  KERNEL(put(out, convolved(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)));
}
ACLNN(aclnnConvolutionBackward, In grad, In x, In weight, Ints bias, Ints stride, Ints padding, Ints dilation,
      bool transposed, Ints output_padding, int groups, Bools wanted, int8_t, Out dx, Out dw, Out db) {
  TYPES(kFloats, grad, x, weight);
  KERNEL({
    at::OptionalIntArrayRef sizes = bias ? at::OptionalIntArrayRef(bias()) : at::OptionalIntArrayRef();
    auto [gx, gw, gb] =
        at::convolution_backward(wide(grad), wide(x), wide(weight), sizes, stride(), padding(), dilation(),
                                 transposed, output_padding(), groups, {wanted[0], wanted[1], wanted[2]});
    if (dx && wanted[0]) put(dx, gx);
    if (dw && wanted[1]) put(dw, gw);
    if (db && wanted[2]) put(db, gb);
  });
}

#define PAD(name, function)                                                       \
  ACLNN(aclnn##name, In self, Ints padding, Out out) {                            \
    TYPES(kFloats | kF64 | kIntegers | kBool, self);                              \
    KERNEL(put(out, at::function(self(), padding())));                            \
  }                                                                               \
  ACLNN(aclnn##name##Backward, In grad, In self, Ints padding, Out out) {         \
    TYPES(kFloats | kF64, grad, self);                                            \
    KERNEL(put(out, at::function##_backward(wide(grad), wide(self), padding()))); \
  }
PAD(ReflectionPad1d, reflection_pad1d)
PAD(ReflectionPad2d, reflection_pad2d)
PAD(ReflectionPad3d, reflection_pad3d)
PAD(ReplicationPad1d, replication_pad1d)
PAD(ReplicationPad2d, replication_pad2d)
PAD(ReplicationPad3d, replication_pad3d)

ACLNN(aclnnAvgPool2d, In self, Ints kernel, Ints stride, Ints padding, bool ceil, bool count_padding,
      int64_t divisor, int8_t, Out out) {
  TYPES(kFloats, self, out);
  KERNEL(put(out, at::avg_pool2d(wide(self), kernel(), stride(), padding(), ceil, count_padding,
                                 divisor ? std::optional<int64_t>(divisor) : std::nullopt)));
}
ACLNN(aclnnAvgPool2dBackward, In grad, In self, Ints kernel, Ints stride, Ints padding, bool ceil,
      bool count_padding, int64_t divisor, int8_t, Out out) {
  TYPES(kFloats, grad, self, out);
  KERNEL(put(
      out, at::avg_pool2d_backward(wide(grad), wide(self), kernel(), stride(), padding(), ceil, count_padding,
                                   divisor ? std::optional<int64_t>(divisor) : std::nullopt)));
}
ACLNN(aclnnAdaptiveAvgPool2d, In self, Ints size, Out out) {
  TYPES(kFloats, self, out);
  KERNEL(put(out, at::adaptive_avg_pool2d(wide(self), size())));
}
ACLNN(aclnnAdaptiveAvgPool2dBackward, In grad, In self, Out out) {
  TYPES(kFloats, grad, self, out);
  KERNEL(put(out, at::_adaptive_avg_pool2d_backward(wide(grad), wide(self))));
}
ACLNN(aclnnUpsampleNearest2d, In self, Ints size, Out out) {
  KERNEL(put(out, at::upsample_nearest2d(wide(self), size())));
}
ACLNN(aclnnUpsampleBilinear2d, In self, Ints size, bool align, double scale_h, double scale_w, Out out) {
  KERNEL(put(out, at::upsample_bilinear2d(wide(self), size(), align)));
}
