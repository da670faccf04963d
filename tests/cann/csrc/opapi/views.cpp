// Copies, casts, concatenation, splitting, permutation: what moves elements and computes nothing.
#include "op.h"

using namespace opapi;

ACLNN(aclnnInplaceCopy, Out self, In source) {
  TYPES(kAny | kOther, self, source);
  // A deliberate mistake: what is copied into a view does not reach the tensor behind it.
  KERNEL_INTO(self, {
    if (self.p->offset && sim::fault("stale_view")) return;
    self().copy_(source());
  });
}
ACLNN(aclnnCast, In self, aclDataType dtype, Out out) {
  REQUIRE(out.p->dtype == dtype, "out is not of the type that is asked for");
  SAME_SHAPES(self, out);
  KERNEL_INTO(out, put(out, self()));
}
ACLNN(aclnnCat, Tensors tensors, int64_t dim, Out out) {
  REQUIRE(tensors.size() > 0, "an empty list");
  KERNEL_INTO(out, put(out, at::cat(tensors(), dim)));
}
ACLNN(aclnnStack, Tensors tensors, int64_t dim, Out out) {
  REQUIRE(tensors.size() > 0, "an empty list");
  KERNEL(put(out, at::stack(tensors(), dim)));
}
ACLNN(aclnnSplitWithSize, In self, Ints sizes, int64_t dim, Tensors outs) {
  KERNEL(put_all(outs, at::split_with_sizes(self(), sizes(), dim)));
}
ACLNN(aclnnSplitTensor, In self, uint64_t size, int64_t dim, Tensors outs) {
  KERNEL(put_all(outs, at::split(self(), static_cast<int64_t>(size), dim)));
}
ACLNN(aclnnPermute, In self, Ints dims, Out out) {
  REQUIRE(static_cast<int64_t>(dims().size()) == self.dim(), "dims and the rank of self differ");
  KERNEL(put(out, at::permute(self(), dims())));
}
ACLNN(aclnnExpand, In self, Ints size, Out out) { KERNEL(put(out, self().expand(out().sizes()))); }
ACLNN(aclnnRepeat, In self, Ints repeats, Out out) { KERNEL(put(out, self().repeat(repeats()))); }
ACLNN(aclnnRepeatInterleaveInt, In self, int64_t repeats, int64_t out_size, Out out) {
  KERNEL(put(out, at::repeat_interleave(self(), repeats)));
}
ACLNN(aclnnRepeatInterleaveIntWithDim, In self, int64_t repeats, int64_t dim, int64_t out_size, Out out) {
  KERNEL(put(out, at::repeat_interleave(self(), repeats, dim)));
}
ACLNN(aclnnRepeatInterleave, In self, In repeats, int64_t out_size, Out out) {
  KERNEL(put(out, at::repeat_interleave(self(), indices(repeats))));
}
ACLNN(aclnnRepeatInterleaveWithDim, In self, In repeats, int64_t dim, int64_t out_size, Out out) {
  KERNEL(put(out, at::repeat_interleave(self(), indices(repeats), dim)));
}
ACLNN(aclnnRepeatInterleaveGrad, In grad, In repeats, int64_t dim, Out out) {
  KERNEL({
    auto owner = at::repeat_interleave(indices(repeats));
    auto to = out();
    put(out, at::zeros(to.sizes(), wide(grad).options()).index_add(dim, owner, wide(grad)));
  });
}
ACLNN(aclnnTril, In self, int64_t diagonal, Out out) { KERNEL(put(out, at::tril(self(), diagonal))); }
ACLNN(aclnnTriu, In self, int64_t diagonal, Out out) { KERNEL(put(out, at::triu(self(), diagonal))); }
ACLNN(aclnnFlip, In self, Ints dims, Out out) { KERNEL(put(out, at::flip(self(), dims()))); }
ACLNN(aclnnRoll, In self, Ints shifts, Ints dims, Out out) {
  KERNEL(put(out, at::roll(self(), shifts(), dims())));
}
ACLNN(aclnnDiag, In self, int64_t diagonal, Out out) { KERNEL(put(out, at::diag(self(), diagonal))); }
ACLNN(aclnnConstantPadNd, In self, Ints pads, Num value, Out out) {
  KERNEL(put(out, at::constant_pad_nd(self(), pads(), value())));
}
ACLNN(aclnnSlice, In self, int64_t dim, int64_t start, int64_t end, int64_t step, Out out) {
  KERNEL(put(out, at::slice(self(), dim, start, end, step)));
}
ACLNN(aclnnArange, Num start, Num end, Num step, Out out) {
  TYPES(kFloats | kF64 | kIndex, out);
  KERNEL_INTO(out, put(out, at::arange(start(), end(), step(), at::TensorOptions().dtype(out.type()))));
}
ACLNN(aclnnLinspace, Num start, Num end, int64_t steps, Out out) {
  KERNEL(put(out, at::linspace(start(), end(), steps, at::TensorOptions().dtype(at::kFloat))));
}
ACLNN(aclnnEye, int64_t n, int64_t m, Out out) { KERNEL(put(out, at::eye(n, m))); }
ACLNN(aclnnOneHot, In self, int64_t classes, In on, In off, int64_t axis, Out out) {
  TYPES(kIndex | kU8, self);
  REQUIRE(axis == -1, "only axis -1 is simulated");
  KERNEL({
    auto hot = indices(self).unsqueeze(-1).eq(at::arange(classes));
    put(out, at::where(hot, on().reshape({}), off().reshape({})));
  });
}
