// Arithmetic, comparison, logic: out of place and in place. Results are computed in the promoted type (16-bit
// floats in fp32) and cast to the output's.
#include "op.h"

using namespace opapi;

#define UNARY(name, types, expression)                             \
  ACLNN(aclnn##name, In self, Out out) {                           \
    TYPES(types, self);                                            \
    SAME_SHAPES(self, out);                                        \
    KERNEL_INTO(out, auto x = wide(self); put(out, (expression))); \
  }
#define UNARY_IN_PLACE(name, types, expression)                      \
  ACLNN(aclnnInplace##name, Out self) {                              \
    TYPES(types, self);                                              \
    KERNEL_INTO(self, auto x = wide(self); put(self, (expression))); \
  }
// aclnn's transcendental functions also take integers and bool (the result is fp32).
constexpr unsigned kMath = kFloats | kF64 | kIntegers | kBool;
UNARY(Abs, kReals, at::abs(x))
UNARY(Exp, kMath, at::exp(x))
UNARY(Exp2, kMath, at::exp2(x))
UNARY(Expm1, kMath, at::expm1(x))
UNARY(Log, kMath, at::log(x))
UNARY(Log2, kMath, at::log2(x))
UNARY(Log10, kMath, at::log10(x))
UNARY(Log1p, kMath, at::log1p(x))
UNARY(Sqrt, kMath, at::sqrt(x))
UNARY(Rsqrt, kMath, at::rsqrt(x))
UNARY(Sin, kMath, at::sin(x))
UNARY(Cos, kMath, at::cos(x))
UNARY(Tan, kMath, at::tan(x))
UNARY(Asin, kMath, at::asin(x))
UNARY(Acos, kMath, at::acos(x))
UNARY(Atan, kMath, at::atan(x))
UNARY(Sinh, kMath, at::sinh(x))
UNARY(Cosh, kMath, at::cosh(x))
UNARY(Asinh, kMath, at::asinh(x))
UNARY(Acosh, kMath, at::acosh(x))
UNARY(Atanh, kMath, at::atanh(x))
UNARY(Sinc, kMath, at::sinc(x))
UNARY(Erf, kMath, at::erf(x))
UNARY(Erfc, kMath, at::erfc(x))
UNARY(Erfinv, kMath, at::erfinv(x))
UNARY(Reciprocal, kMath, at::reciprocal(x))
UNARY(Neg, kFloats | kF64 | kSigned, at::neg(x))
UNARY(Floor, kFloats | kF64 | kIntegers, at::floor(x))
UNARY(Ceil, kFloats | kF64 | kIntegers, at::ceil(x))
UNARY(Trunc, kFloats | kF64 | kIntegers, at::trunc(x))
UNARY(Frac, kFloats | kF64 | kIntegers, at::frac(x))
UNARY(Sign, kFloats | kF64 | kIntegers | kBool, at::sign(x))
UNARY(LogicalNot, kReals, at::logical_not(x))
UNARY(BitwiseNot, kIntegers | kBool, at::bitwise_not(x))
UNARY(IsFinite, kReals, at::isfinite(x))
UNARY(IsInf, kReals, at::isinf(x))
UNARY(IsNegInf, kReals, at::isneginf(x))
UNARY_IN_PLACE(Exp, kFloats | kF64, at::exp(x))
UNARY_IN_PLACE(Log, kFloats | kF64, at::log(x))
UNARY_IN_PLACE(Floor, kFloats | kF64, at::floor(x))
UNARY_IN_PLACE(Erfinv, kFloats | kF64, at::erfinv(x))
UNARY_IN_PLACE(Sigmoid, kFloats | kF64, at::sigmoid(x))
UNARY_IN_PLACE(Tanh, kFloats | kF64, at::tanh(x))
UNARY_IN_PLACE(Relu, kFloats | kSigned | kU8, at::relu(x))
// In null mode, too: what is scattered into zeros may become indices.
ACLNN(aclnnInplaceZero, Out self) {
  TYPES(kAny, self);
  KERNEL_WITH_SHAPE(self().zero_());
}
UNARY_IN_PLACE(One, kAny, at::ones_like(x))

ACLNN(aclnnRoundDecimals, In self, int64_t decimals, Out out) {
  TYPES(kFloats | kF64 | kIndex, self);
  KERNEL(put(out, decimals ? at::round(wide(self), decimals) : at::round(wide(self))));
}
ACLNN(aclnnNanToNum, In self, float nan, float posinf, float neginf, Out out) {
  TYPES(kFloats | kIntegers | kBool, self);
  KERNEL(put(out, at::nan_to_num(wide(self), nan, posinf, neginf)));
}

// ---- two operands
// -------------------------------------------------------------------------------------------------
ACLNN(aclnnAdd, In self, In other, Num alpha, Out out) {
  TYPES(kAny, self, other, out);
  KERNEL_INTO(out, put(out, at::add(wide(self), wide(other), alpha())));
}
ACLNN(aclnnSub, In self, In other, Num alpha, Out out) {
  TYPES(kAny & ~kBool, self, other, out);
  KERNEL_INTO(out, put(out, at::sub(wide(self), wide(other), alpha())));
}
ACLNN(aclnnAdds, In self, Num other, Num alpha, Out out) {
  TYPES(kAny, self, out);
  KERNEL(put(out, at::add(wide(self), other(), alpha())));
}
ACLNN(aclnnSubs, In self, Num other, Num alpha, Out out) {
  TYPES(kAny & ~kBool, self, out);
  KERNEL(put(out, at::sub(wide(self), other(), alpha())));
}
ACLNN(aclnnInplaceAdd, Out self, In other, Num alpha) {
  TYPES(kAny, self, other);
  KERNEL(put(self, at::add(wide(self), wide(other), alpha())));
}
ACLNN(aclnnInplaceSub, Out self, In other, Num alpha) {
  TYPES(kAny & ~kBool, self, other);
  KERNEL(put(self, at::sub(wide(self), wide(other), alpha())));
}
ACLNN(aclnnInplaceAdds, Out self, Num other, Num alpha) {
  TYPES(kAny, self);
  KERNEL(put(self, at::add(wide(self), other(), alpha())));
}
ACLNN(aclnnInplaceSubs, Out self, Num other, Num alpha) {
  TYPES(kAny & ~kBool, self);
  KERNEL(put(self, at::sub(wide(self), other(), alpha())));
}

#define BINARY(name, types, expression)                                                  \
  ACLNN(aclnn##name, In self, In other, Out out) {                                       \
    TYPES(types, self, other);                                                           \
    KERNEL_INTO(out, auto a = wide(self); auto b = wide(other); put(out, (expression))); \
  }
#define BINARY_SCALAR(name, types, expression)                                       \
  ACLNN(aclnn##name, In self, Num other, Out out) {                                  \
    TYPES(types, self);                                                              \
    KERNEL_INTO(out, auto a = wide(self); auto b = other(); put(out, (expression))); \
  }
#define BINARY_IN_PLACE(name, types, expression)                                           \
  ACLNN(aclnnInplace##name, Out self, In other) {                                          \
    TYPES(types, self, other);                                                             \
    KERNEL_INTO(self, auto a = wide(self); auto b = wide(other); put(self, (expression))); \
  }
#define BINARY_SCALAR_IN_PLACE(name, types, expression)                                \
  ACLNN(aclnnInplace##name, Out self, Num other) {                                     \
    TYPES(types, self);                                                                \
    KERNEL_INTO(self, auto a = wide(self); auto b = other(); put(self, (expression))); \
  }
constexpr unsigned kOrdered = kFloats | kF64 | kIntegers | kBool;
BINARY(Mul, kAny, at::mul(a, b))
BINARY(Div, kAny, at::div(a, b))
BINARY(FloorDivide, kOrdered, at::floor_divide(a, b))
BINARY(Maximum, kOrdered, at::maximum(a, b))
BINARY(Minimum, kOrdered, at::minimum(a, b))
BINARY(PowTensorTensor, kOrdered & ~kBool, at::pow(a, b))
BINARY(RemainderTensorTensor, kOrdered & ~kBool, at::remainder(a, b))
BINARY(FmodTensor, kOrdered & ~kBool, at::fmod(a, b))
BINARY(Atan2, kOrdered, at::atan2(a, b))
BINARY(LogAddExp, kFloats, at::logaddexp(a, b))
BINARY(LogAddExp2, kFloats, at::logaddexp2(a, b))
BINARY(XLogYTensor, kOrdered, at::xlogy(a, b))
BINARY(EqTensor, kAny, at::eq(a, b))
BINARY(NeTensor, kAny, at::ne(a, b))
BINARY(LtTensor, kOrdered, at::lt(a, b))
BINARY(LeTensor, kOrdered, at::le(a, b))
BINARY(GtTensor, kOrdered, at::gt(a, b))
BINARY(GeTensor, kOrdered, at::ge(a, b))
BINARY(LogicalAnd, kOrdered, at::logical_and(a, b))
BINARY(LogicalOr, kOrdered, at::logical_or(a, b))
BINARY(LogicalXor, kOrdered, at::logical_xor(a, b))
BINARY(BitwiseAndTensor, kIntegers | kBool, at::bitwise_and(a, b))
BINARY(BitwiseOrTensor, kIntegers | kBool, at::bitwise_or(a, b))
BINARY(BitwiseXorTensor, kIntegers | kBool, at::bitwise_xor(a, b))
BINARY(LeftShift, kIntegers, at::bitwise_left_shift(a, b))
BINARY(Gcd, kIntegers, at::gcd(a, b))
BINARY_SCALAR(Muls, kAny, at::mul(a, b))
BINARY_SCALAR(Divs, kAny, at::div(a, b))
BINARY_SCALAR(FloorDivides, kOrdered, at::floor_divide(a, b))
BINARY_SCALAR(PowTensorScalar, kOrdered & ~kBool, at::pow(a, b))
BINARY_SCALAR(RemainderTensorScalar, kOrdered & ~kBool, at::remainder(a, b))
BINARY_SCALAR(FmodScalar, kOrdered & ~kBool, at::fmod(a, b))
BINARY_SCALAR(XLogYScalarOther, kOrdered, at::xlogy(a, b))
BINARY_SCALAR(EqScalar, kAny, at::eq(a, b))
BINARY_SCALAR(NeScalar, kAny, at::ne(a, b))
BINARY_SCALAR(LtScalar, kOrdered, at::lt(a, b))
BINARY_SCALAR(GeScalar, kOrdered, at::ge(a, b))
BINARY_SCALAR(BitwiseAndScalar, kIntegers | kBool, at::bitwise_and(a, b))
BINARY_SCALAR(BitwiseOrScalar, kIntegers | kBool, at::bitwise_or(a, b))
BINARY_SCALAR(BitwiseXorScalar, kIntegers | kBool, at::bitwise_xor(a, b))
BINARY_IN_PLACE(Mul, kAny, at::mul(a, b))
BINARY_IN_PLACE(Div, kAny, at::div(a, b))
BINARY_IN_PLACE(FloorDivide, kOrdered, at::floor_divide(a, b))
BINARY_IN_PLACE(RemainderTensorTensor, kOrdered & ~kBool, at::remainder(a, b))
BINARY_SCALAR_IN_PLACE(Muls, kAny, at::mul(a, b))
BINARY_SCALAR_IN_PLACE(Divs, kAny, at::div(a, b))
BINARY_SCALAR_IN_PLACE(FloorDivides, kOrdered, at::floor_divide(a, b))
BINARY_SCALAR_IN_PLACE(RemainderTensorScalar, kOrdered & ~kBool, at::remainder(a, b))

ACLNN(aclnnPowScalarTensor, Num self, In exponent, Out out) {
  TYPES(kOrdered & ~kBool, exponent);
  KERNEL(put(out, at::pow(self(), wide(exponent))));
}
ACLNN(aclnnRemainderScalarTensor, Num self, In other, Out out) {
  KERNEL(put(out, at::remainder(self(), wide(other))));
}
ACLNN(aclnnXLogYScalarSelf, Num self, In other, Out out) { KERNEL(put(out, at::xlogy(self(), wide(other)))); }

// The mode of DivMod: 0 true division, 1 towards zero, 2 downwards (aclnnDivMod).
template <class B>
static Tensor divided(const Tensor& a, const B& b, int mode) {
  if (mode == 0) return at::div(a, b);
  return at::div(a, b, std::optional<std::string_view>(mode == 1 ? "trunc" : "floor"));
}
ACLNN(aclnnDivMod, In self, In other, int mode, Out out) {
  REQUIRE(mode >= 0 && mode <= 2, "mode must be 0, 1 or 2");
  KERNEL(put(out, divided(wide(self), wide(other), mode)));
}
ACLNN(aclnnDivMods, In self, Num other, int mode, Out out) {
  REQUIRE(mode >= 0 && mode <= 2, "mode must be 0, 1 or 2");
  KERNEL(put(out, divided(wide(self), other(), mode)));
}
ACLNN(aclnnInplaceDivMod, Out self, In other, int mode) {
  KERNEL(put(self, divided(wide(self), wide(other), mode)));
}
ACLNN(aclnnInplaceDivMods, Out self, Num other, int mode) {
  KERNEL(put(self, divided(wide(self), other(), mode)));
}

ACLNN(aclnnIsClose, In self, In other, double rtol, double atol, bool equal_nan, Out out) {
  KERNEL(put(out, at::isclose(self(), other(), rtol, atol, equal_nan)));
}
ACLNN(aclnnEqual, In self, In other, Out out) { KERNEL(out().fill_(at::equal(self(), other()))); }

// ---- three operands
// -----------------------------------------------------------------------------------------------
ACLNN(aclnnSWhere, In condition, In self, In other, Out out) {
  TYPES(kBool | kU8, condition);
  KERNEL(put(out, at::where(condition().to(at::kBool), self(), other())));
}
ACLNN(aclnnAddcmul, In self, In a, In b, Num value, Out out) {
  KERNEL(put(out, at::addcmul(wide(self), wide(a), wide(b), value())));
}
ACLNN(aclnnAddcdiv, In self, In a, In b, Num value, Out out) {
  KERNEL(put(out, at::addcdiv(wide(self), wide(a), wide(b), value())));
}
ACLNN(aclnnLerp, In self, In end, In weight, Out out) {
  TYPES(kFloats, self, end, weight);
  KERNEL(put(out, at::lerp(wide(self), wide(end), wide(weight))));
}
ACLNN(aclnnLerps, In self, In end, Num weight, Out out) {
  TYPES(kFloats, self, end);
  KERNEL(put(out, at::lerp(wide(self), wide(end), weight())));
}
ACLNN(aclnnClamp, In self, Num low, Num high, Out out) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL(put(out, at::clamp(wide(self), low.maybe(), high.maybe())));
}
ACLNN(aclnnClampMin, In self, Num low, Out out) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL(put(out, at::clamp_min(wide(self), low())));
}
ACLNN(aclnnClampTensor, In self, In low, In high, Out out) {
  KERNEL(put(out, at::clamp(wide(self), maybe_wide(low), maybe_wide(high))));
}

// ---- fills
// --------------------------------------------------------------------------------------------------------
ACLNN(aclnnInplaceFillScalar, Out self, Num value) { KERNEL_INTO(self, self().fill_(value())); }
ACLNN(aclnnInplaceFillTensor, Out self, In value) {
  REQUIRE(value.dim() == 0 || (value.dim() == 1 && value.size(0) == 1), "value must hold one element");
  KERNEL(self().fill_(value().reshape({})));
}
ACLNN(aclnnInplaceMaskedFillScalar, Out self, In mask, Num value) {
  TYPES(kBool, mask);
  KERNEL(self().masked_fill_(mask(), value()));
}
ACLNN(aclnnInplaceMaskedFillTensor, Out self, In mask, In value) {
  TYPES(kBool, mask);
  REQUIRE(value.dim() == 0 || (value.dim() == 1 && value.size(0) == 1), "value must hold one element");
  KERNEL(self().masked_fill_(mask(), value().reshape({})));
}
ACLNN(aclnnInplaceFillDiagonal, Out self, Num value, bool wrap) {
  KERNEL(self().fill_diagonal_(value(), wrap));
}
ACLNN(aclnnInplaceMaskedScatter, Out self, In mask, In source) {
  TYPES(kBool, mask);
  KERNEL(self().masked_scatter_(mask(), source()));
}
