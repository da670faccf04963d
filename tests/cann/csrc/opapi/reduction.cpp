// Sums, extremes, norms, cumulative sums, statistics.
#include "op.h"

using namespace opapi;

// A deliberate mistake: the sum over all leading dimensions that gives a bias its gradient is lost.
static Tensor summed(const Tensor& x, at::IntArrayRef dims, bool keep, at::ScalarType type) {
  auto sum = at::sum(x, dims, keep, type);
  bool bias = x.dim() >= 2 && sum.dim() == 1 && sum.numel() == x.size(-1);
  return bias && sim::fault("dropped_bias_gradient") ? at::zeros_like(sum) : sum;
}

static at::ScalarType wide_type(aclDataType dtype) {
  auto type = scalar_type(dtype);
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

ACLNN(aclnnReduceSum, In self, Ints dims, bool keep, aclDataType dtype, Out out) {
  TYPES(kAny, self, out);
  KERNEL_INTO(out, put(out, summed(wide(self), dims(), keep, wide_type(dtype))));
}
ACLNN(aclnnReduceNansum, In self, Ints dims, bool keep, aclDataType dtype, Out out) {
  KERNEL(put(out, at::nansum(wide(self), dims(), keep, wide_type(dtype))));
}
ACLNN(aclnnMean, In self, Ints dims, bool keep, aclDataType dtype, Out out) {
  TYPES(kFloats | kF64 | kC64 | kC128, out);
  KERNEL(put(out, at::mean(wide(self), dims(), keep, wide_type(dtype))));
}
ACLNN(aclnnProd, In self, aclDataType dtype, Out out) {
  KERNEL(put(out, at::prod(wide(self), wide_type(dtype))));
}
ACLNN(aclnnProdDim, In self, int64_t dim, bool keep, aclDataType dtype, Out out) {
  KERNEL(put(out, at::prod(wide(self), dim, keep, wide_type(dtype))));
}
ACLNN(aclnnAmax, In self, Ints dims, bool keep, Out out) {
  TYPES(kFloats | kF64 | kIntegers | kBool, self);
  KERNEL(put(out, at::amax(self(), dims(), keep)));
}
ACLNN(aclnnAmin, In self, Ints dims, bool keep, Out out) {
  TYPES(kFloats | kF64 | kIntegers | kBool, self);
  KERNEL(put(out, at::amin(self(), dims(), keep)));
}
ACLNN(aclnnMax, In self, Out out) { KERNEL(put(out, at::max(self()))); }
ACLNN(aclnnMin, In self, Out out) { KERNEL(put(out, at::min(self()))); }
ACLNN(aclnnAll, In self, Ints dims, bool keep, Out out) {
  KERNEL_INTO(
      out, put(out, dims().empty() ? at::all(self()).reshape(out().sizes()) : at::all(self(), dims(), keep)));
}
ACLNN(aclnnAny, In self, Ints dims, bool keep, Out out) {
  KERNEL_INTO(
      out, put(out, dims().empty() ? at::any(self()).reshape(out().sizes()) : at::any(self(), dims(), keep)));
}
ACLNN(aclnnAllFinite, In self,
      Out out) {  // an operator of MindSpore's own: true where something is not finite
  KERNEL(out().fill_(!at::isfinite(wide(self)).all().item<bool>()));
}
ACLNN(aclnnMaxDim, In self, int64_t dim, bool keep, Out out, Out index) {
  TYPES(kFloats | kF64 | kIntegers | kBool, self);
  KERNEL({
    auto [values, where] = at::max(self(), dim, keep);
    put(out, values);
    put(index, where);
  });
}
ACLNN(aclnnMinDim, In self, int64_t dim, bool keep, Out out, Out index) {
  TYPES(kFloats | kF64 | kIntegers | kBool, self);
  KERNEL({
    auto [values, where] = at::min(self(), dim, keep);
    put(out, values);
    put(index, where);
  });
}
ACLNN(aclnnArgMax, In self, int64_t dim, bool keep, Out out) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL(put(out, at::argmax(self(), dim, keep)));
}
ACLNN(aclnnArgMin, In self, int64_t dim, bool keep, Out out) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL(put(out, at::argmin(self(), dim, keep)));
}
ACLNN(aclnnMedian, In self, Out out) { KERNEL(put(out, at::median(self()))); }
ACLNN(aclnnMedianDim, In self, int64_t dim, bool keep, Out out, Out index) {
  KERNEL({
    auto [values, where] = at::median(self(), dim, keep);
    put(out, values);
    put(index, where);
  });
}
ACLNN(aclnnKthvalue, In self, int64_t k, int64_t dim, bool keep, Out out, Out index) {
  KERNEL({
    auto [values, where] = at::kthvalue(self(), k, dim, keep);
    put(out, values);
    put(index, where);
  });
}

ACLNN(aclnnCumsum, In self, int64_t dim, aclDataType dtype, Out out) {
  KERNEL_INTO(out, put(out, at::cumsum(wide(self), dim, wide_type(dtype))));
}
ACLNN(aclnnCummax, In self, int64_t dim, Out out, Out index) {
  KERNEL({
    auto [values, where] = at::cummax(self(), dim);
    put(out, values);
    put(index, where);
  });
}
ACLNN(aclnnCummin, In self, int64_t dim, Out out, Out index) {
  KERNEL({
    auto [values, where] = at::cummin(self(), dim);
    put(out, values);
    put(index, where);
  });
}

ACLNN(aclnnLogSumExp, In self, Ints dims, bool keep, Out out) {
  TYPES(kFloats | kIntegers | kBool, self);
  KERNEL(put(out, at::logsumexp(wide(self), dims(), keep)));
}
static at::OptionalIntArrayRef every_or(at::IntArrayRef dims) {
  return dims.empty() ? at::OptionalIntArrayRef() : at::OptionalIntArrayRef(dims);
}
ACLNN(aclnnLinalgVectorNorm, In self, Num order, Ints dims, bool keep, aclDataType dtype, Out out) {
  TYPES(kFloats, self, out);
  KERNEL(put(out, at::linalg_vector_norm(wide(self), order(), every_or(dims()), keep, wide_type(dtype))));
}
ACLNN(aclnnNorm, In self, Num order, Ints dims, bool keep, Out out) {
  TYPES(kFloats, self, out);
  KERNEL(put(out, at::linalg_vector_norm(wide(self), order(), every_or(dims()), keep)));
}
ACLNN(aclnnStd, In self, Ints dims, int64_t correction, bool keep, Out out) {
  TYPES(kFloats, self);
  KERNEL(put(out, at::std(wide(self), every_or(dims()), correction, keep)));
}
ACLNN(aclnnVarCorrection, In self, Ints dims, int64_t correction, bool keep, Out out) {
  TYPES(kFloats, self);
  KERNEL(put(out, at::var(wide(self), every_or(dims()), correction, keep)));
}
ACLNN(aclnnVarMean, In self, Ints dims, int64_t correction, bool keep, Out variance, Out mean) {
  TYPES(kFloats, self);
  KERNEL({
    auto [v, m] = at::var_mean(wide(self), every_or(dims()), correction, keep);
    put(variance, v);
    put(mean, m);
  });
}
ACLNN(aclnnStdMeanCorrection, In self, Ints dims, int64_t correction, bool keep, Out deviation, Out mean) {
  TYPES(kFloats, self);
  KERNEL({
    auto [s, m] = at::std_mean(wide(self), every_or(dims()), correction, keep);
    put(deviation, s);
    put(mean, m);
  });
}
ACLNN(aclnnTrace, In self, Out out) { KERNEL(put(out, at::trace(self()))); }
ACLNN(aclnnBincount, In self, In weights, int64_t minimum, Out out) {
  TYPES(kIntegers, self);
  KERNEL_WITH_SHAPE(put_shaped(out, at::bincount(self(), maybe(weights), minimum)));
}
ACLNN(aclnnHistc, In self, int64_t bins, Num low, Num high, Out out) {
  TYPES(kF32 | kIntegers, self);
  KERNEL(put(out, at::histc(self().to(at::kFloat), bins, low(), high())));
}
