// Gather, scatter, index, sort, top-k, embedding. An index out of range ends the kernel, as it ends an AI
// core.
#include "op.h"

using namespace opapi;

using IndexList = c10::List<std::optional<Tensor>>;

// An empty 1-d tensor stands for "the whole dimension" in the index lists of aclnn.
static IndexList index_list(Tensors list) {
  IndexList all;
  for (size_t i = 0; i < list.size(); ++i) {
    bool whole = !list[i] || (list[i].dim() == 1 && list[i].size(0) == 0);
    all.push_back(whole ? std::optional<Tensor>() : std::optional<Tensor>(list[i]()));
  }
  return all;
}

ACLNN(aclnnIndex, In self, Tensors list, Out out) { KERNEL(put(out, at::index(self(), index_list(list)))); }
ACLNN(aclnnIndexPutImpl, Out self, Tensors list, In values, bool accumulate, bool) {
  KERNEL({
    auto to = self();
    at::index_put_(to, index_list(list), values(), accumulate);
  });
}
ACLNN(aclnnIndexSelect, In self, int64_t dim, In index, Out out) {
  TYPES(kIndex, index);
  REQUIRE(index.dim() <= 1, "index must be a vector");
  KERNEL_INTO(out, put(out, at::index_select(self(), dim, index().reshape({-1}))));
}
ACLNN(aclnnIndexAdd, In self, int64_t dim, In index, In source, Num alpha, Out out) {
  TYPES(kIndex, index);
  KERNEL(put(out, at::index_add(wide(self), dim, indices(index), wide(source), alpha())));
}
ACLNN(aclnnIndexFillTensor, In self, int64_t dim, Ints index, Num value, Out out) {
  KERNEL(put(out, at::index_fill(self(), dim, at::tensor(index(), at::kLong), value())));
}
ACLNN(aclnnInplaceIndexFillTensor, Out self, int64_t dim, Ints index, Num value) {
  KERNEL(self().index_fill_(dim, at::tensor(index(), at::kLong), value()));
}
ACLNN(aclnnInplaceIndexCopy, Out self, int64_t dim, In index, In source) {
  KERNEL(self().index_copy_(dim, indices(index), source()));
}
ACLNN(aclnnGather, In self, int64_t dim, In index, Out out) {
  TYPES(kIndex, index);
  REQUIRE(self.dim() == index.dim(), "self and index differ in rank");
  KERNEL_INTO(out, put(out, at::gather(self(), dim, indices(index))));
}
ACLNN(aclnnGatherNd, In self, In index, bool negative, Out out) {
  TYPES(kIndex, index);
  KERNEL({
    auto parts = indices(index).unbind(-1);
    IndexList list;
    for (auto& part : parts) list.push_back(part);
    put(out, at::index(self(), list));
  });
}
ACLNN(aclnnTake, In self, In index, Out out) { KERNEL(put(out, at::take(self(), indices(index)))); }
ACLNN(aclnnInplacePut, Out self, In index, In source, bool accumulate) {
  KERNEL(self().put_(indices(index), source(), accumulate));
}

// reduce: 0 replaces, 1 adds, 2 multiplies (aclnnScatter).
static Tensor scattered(const Tensor& self, int64_t dim, const Tensor& index, const Tensor& source,
                        int64_t reduce) {
  if (reduce == 0) return at::scatter(self, dim, index, source);
  return at::scatter(self, dim, index, source, reduce == 1 ? "add" : "multiply");
}
ACLNN(aclnnScatter, In self, int64_t dim, In index, In source, int64_t reduce, Out out) {
  TYPES(kIndex, index);
  KERNEL(put(out, scattered(self(), dim, indices(index), source(), reduce)));
}
ACLNN(aclnnInplaceScatter, Out self, int64_t dim, In index, In source, int64_t reduce) {
  TYPES(kIndex, index);
  KERNEL(put(self, scattered(self(), dim, indices(index), source(), reduce)));
}
ACLNN(aclnnScatterValue, In self, int64_t dim, In index, Num value, int64_t reduce, Out out) {
  TYPES(kIndex, index);
  KERNEL_INTO(out, {
    auto x = self();
    auto ix = indices(index);
    put(out, scattered(x, dim, ix, at::full(ix.sizes(), value(), x.options()), reduce));
  });
}
ACLNN(aclnnInplaceScatterValue, Out self, int64_t dim, In index, Num value, int64_t reduce) {
  TYPES(kIndex, index);
  KERNEL({
    auto x = self();
    auto ix = indices(index);
    put(self, scattered(x, dim, ix, at::full(ix.sizes(), value(), x.options()), reduce));
  });
}
ACLNN(aclnnScatterAdd, In self, int64_t dim, In index, In source, Out out) {
  TYPES(kIndex, index);
  KERNEL(put(out, at::scatter_add(wide(self), dim, indices(index), wide(source))));
}
ACLNN(aclnnTfScatterAdd, Out self, In index, In updates) {  // rows: self[index] += updates
  TYPES(kIndex, index);
  KERNEL({
    auto to = self();
    auto ix = indices(index).reshape({-1});
    auto rows = to.sizes().vec();
    rows[0] = ix.numel();
    put(self, at::index_add(wide(to), 0, ix, wide(updates).reshape(rows)));
  });
}
ACLNN(aclnnInplaceScatterUpdate, Out self, In index, In updates, int64_t axis) {
  KERNEL(self().index_copy_(0, indices(index).reshape({-1}), updates()));
}

ACLNN(aclnnEmbedding, In weight, In index, Out out) {
  TYPES(kIndex, index);
  REQUIRE(weight.dim() == 2, "weight must be a matrix");
  KERNEL(put(out, at::embedding(weight(), index())));
}
ACLNN(aclnnEmbeddingDenseBackward, In grad, In index, uint64_t count, uint64_t padding, bool scale, Out out) {
  TYPES(kFloats, grad, out);
  TYPES(kIndex, index);
  KERNEL(put(out, at::embedding_dense_backward(wide(grad), index(), static_cast<int64_t>(count),
                                               static_cast<int64_t>(padding), scale)));
}

ACLNN(aclnnSort, In self, bool stable, int64_t dim, bool descending, Out values, Out index) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL_INTO(index, {
    auto [v, i] = at::sort(self(), stable, dim, descending);
    put(values, v);
    put(index, i);
  });
}
ACLNN(aclnnTopk, In self, int64_t k, int64_t dim, bool largest, bool sorted, Out values, Out index) {
  TYPES(kFloats | kF64 | kIntegers, self);
  KERNEL_INTO(index, {
    auto [v, i] = at::topk(self(), k, dim, largest, sorted);
    put(values, v);
    put(index, i);
  });
}
ACLNN(aclnnSearchSorted, In sorted, In self, bool int32, bool right, In sorter, Out out) {
  KERNEL(put(out, at::searchsorted(sorted(), self(), int32, right, std::nullopt, maybe(sorter))));
}
ACLNN(aclnnUnique2, In self, bool sorted, bool inverse, bool counts, Out values, Out inverses, Out numbers) {
  KERNEL_WITH_SHAPE({
    auto [v, i, n] = at::_unique2(self(), sorted, inverse, counts);
    put_shaped(values, v);
    if (inverse) put(inverses, i);
    if (counts) put_shaped(numbers, n);
  });
}
ACLNN(aclnnUniqueConsecutive, In self, bool inverse, bool counts, int64_t dim, Out values, Out inverses,
      Out numbers) {
  constexpr int64_t kNone = 1000;  // MindSpore's and aclnn's word for "flat"
  KERNEL_WITH_SHAPE({
    auto [v, i, n] = at::unique_consecutive(self(), inverse, counts,
                                            dim == kNone ? std::nullopt : std::optional<int64_t>(dim));
    put_shaped(values, v);
    if (inverse) put(inverses, i);
    if (counts) put_shaped(numbers, n);
  });
}
ACLNN(aclnnNonzero, In self, Out out) { KERNEL_WITH_SHAPE(put_shaped(out, at::nonzero(self()))); }
ACLNN(aclnnNonzeroV2, In self, Out out) {
  KERNEL_WITH_SHAPE(put_shaped(out, at::nonzero(self()).t().contiguous()));
}
ACLNN(aclnnMaskedSelect, In self, In mask, Out out) {
  TYPES(kBool | kU8, mask);
  KERNEL_WITH_SHAPE(put_shaped(out, at::masked_select(self(), mask().to(at::kBool))));
}
