// Mixture of experts: permutation of tokens, grouped matrix products. Limits: the pages aclnnMoeToken*.md and
// aclnnGroupedMatmulV2 - V4.md of CANN's ops-transformer, for Atlas A2.
#include "op.h"

using namespace opapi;

namespace {

constexpr int64_t kMaximumTopK = 512;

int check_rows(const char* function, In rows, bool padded) {
  if (padded) return refuse(function, "paddedMode true is not supported");
  return refuse_types(function, "sortedIndices", kI32, {rows});
}

}  // namespace

ACLNN(aclnnMoeTokenPermute, In tokens, In index, int64_t count, bool padded, Out permuted, Out rows) {
  TYPES(kFloats, tokens, permuted);
  TYPES(kIndex, index);
  if (int error = check_rows(__func__, rows, padded)) return error;
  REQUIRE(tokens.dim() >= 2, "tokens must have two dimensions or more");
  REQUIRE(index.dim() == 1 || index.dim() == 2, "indices must have one or two dimensions");
  REQUIRE(index.size(0) == tokens.size(0),
          "indices " + shape_text(index) + " do not fit tokens " + shape_text(tokens));
  int64_t top_k = index.dim() == 2 ? index.size(1) : 1;
  REQUIRE(top_k <= kMaximumTopK, "topK must be at most 512");
  KERNEL({
    auto order = at::argsort(indices(index).reshape({-1}), true, 0, false);
    put(rows, at::argsort(order, true, 0, false));
    int64_t all = order.numel();
    int64_t kept =
        count > 0 ? std::min(count, all) : all + count;  // 0 keeps all, a negative count cuts as a slice
    put(permuted, at::index_select(tokens(), 0, order.narrow(0, 0, kept).div(top_k, "floor")));
  });
}
ACLNN(aclnnMoeTokenPermuteGrad, In grad, In rows, int64_t top_k, bool padded, Out out) {
  TYPES(kFloats, grad, out);
  if (int error = check_rows(__func__, rows, padded)) return error;
  REQUIRE(grad.dim() == 2, "permutedOutputGrad must be a matrix");
  REQUIRE(top_k > 0 && top_k <= kMaximumTopK, "numTopk must be in 1 ... 512");
  KERNEL({
    auto g = wide(grad);
    auto where = indices(rows);
    auto dropped = where.ge(g.size(0));  // rows that numOutTokens has cut off
    auto each = at::index_select(g, 0, where.masked_fill(dropped, 0));
    each = each.masked_fill(dropped.unsqueeze(1), 0);
    put(out, each.reshape({-1, top_k, g.size(1)}).sum(1));
  });
}
ACLNN(aclnnMoeTokenUnpermute, In permuted, In rows, In weights, bool padded, Ints shape, Out out) {
  TYPES(kFloats, permuted, weights, out);
  if (int error = check_rows(__func__, rows, padded)) return error;
  REQUIRE(permuted.dim() == 2, "permutedTokens must be a matrix");
  REQUIRE(!weights || (weights.dim() == 2 && weights.size(1) <= kMaximumTopK),
          "probs must be (tokens, topK <= 512)");
  KERNEL({
    auto x = wide(permuted);
    auto where = indices(rows);
    auto dropped = where.ge(x.size(0));
    auto each = at::index_select(x, 0, where.masked_fill(dropped, 0)).masked_fill(dropped.unsqueeze(1), 0);
    if (!weights) return put(out, each);
    auto w = wide(weights);
    put(out, (each.reshape({w.size(0), w.size(1), -1}) * w.unsqueeze(-1)).sum(1));
  });
}
ACLNN(aclnnMoeTokenUnpermuteGrad, In permuted, In grad, In rows, In weights, bool padded, Ints shape,
      Out d_permuted, Out d_weights) {
  TYPES(kFloats, permuted, grad, weights, d_permuted, d_weights);
  if (int error = check_rows(__func__, rows, padded)) return error;
  KERNEL({
    auto x = wide(permuted);
    auto g = wide(grad);
    auto where = indices(rows);
    auto kept = where.lt(x.size(0));
    auto target = where.masked_select(kept);
    auto zeros = at::zeros(x.sizes(), x.options());
    if (!weights) return put(d_permuted, zeros.index_copy(0, target, at::index(g, {kept})));
    auto w = wide(weights);
    auto each = (g.unsqueeze(1) * w.unsqueeze(-1)).reshape({-1, x.size(1)});
    put(d_permuted, zeros.index_copy(0, target, at::index(each, {kept})));
    auto tokens = at::index_select(x, 0, where.masked_fill(kept.logical_not(), 0))
                      .masked_fill(kept.logical_not().unsqueeze(1), 0);
    put_if(d_weights, (tokens.reshape({w.size(0), w.size(1), -1}) * g.unsqueeze(1)).sum(-1));
  });
}

// ---- grouped products
// ---------------------------------------------------------------------------------------------
namespace {

enum GroupType { kNoGroups = -1, kRows = 0, kInner = 2 };

bool transposed(In t) { return t.dim() >= 2 && t.size(-1) > 1 && t.p->stride.back() != 1; }

struct Grouped {
  Tensors x, weight, bias, out;
  int64_t split, type;
};

// What the pages allow without quantization: x, weight and out alike; fp32 only as single tensors; bias fp16
// with fp16 and fp32 otherwise; x transposed with groups of the inner dimension and only then.
int check(const char* function, const Grouped& g, bool has_groups) {
  if (!g.x.size() || !g.weight.size() || !g.out.size())
    return refuse(function, "x, weight and out must not be empty");
  if (g.weight.size() > 128) return refuse(function, "more than 128 weights");
  if (g.type != kNoGroups && g.type != kRows && g.type != kInner)
    return refuse(function, "groupType must be -1, 0 or 2");
  auto type = g.x[0].type();
  for (auto list : {g.x, g.weight, g.out})
    for (size_t i = 0; i < list.size(); ++i) {
      if (int error = refuse_types(function, "x, weight or out", kFloats, {list[i]})) return error;
      if (list[i].type() != type) return refuse(function, "x, weight and out differ in dtype");
    }
  bool single = g.x.size() == 1 && g.weight.size() == 1 && g.out.size() == 1;
  if (type == at::kFloat && !single) return refuse(function, "float32 is taken as single tensors only");
  for (size_t i = 0; i < g.bias.size(); ++i)
    if (g.bias[i] && g.bias[i].type() != (type == at::kHalf ? at::kHalf : at::kFloat))
      return refuse(function, "bias must be float16 with float16 and float32 otherwise");
  if (g.bias.size() && g.bias.size() != g.weight.size())
    return refuse(function, "bias and weight differ in length");
  if (g.split >= 2 && g.out.size() != 1) return refuse(function, "splitItem 2 or 3 gives one tensor");
  if (g.split < 2 && g.out.size() != g.weight.size())
    return refuse(function, "splitItem 0 or 1 gives a tensor per weight");
  if (g.type == kNoGroups && has_groups) return refuse(function, "groupList must be null without groups");
  if (single && g.type == kRows) {
    if (!has_groups) return refuse(function, "groupList is missing");
    if (g.weight[0].dim() != 3 || g.x[0].dim() != 2 || g.out[0].dim() != 2)
      return refuse(function, "groups of rows need x (m, k), weight (e, k, n), out (m, n)");
    if (transposed(g.x[0])) return refuse(function, "x must not be transposed with groupType 0");
  }
  if (single && g.type == kInner) {
    if (!has_groups) return refuse(function, "groupList is missing");
    if (g.weight[0].dim() != 2 || g.x[0].dim() != 2 || g.out[0].dim() != 3)
      return refuse(function, "groups of the inner dimension need x (m, k), weight (k, n), out (e, m, n)");
    if (!transposed(g.x[0])) return refuse(function, "x must be transposed with groupType 2");
    if (transposed(g.weight[0])) return refuse(function, "weight must not be transposed with groupType 2");
    if (g.bias.size()) return refuse(function, "no bias with groupType 2");
  }
  for (auto list : {g.x, g.weight})
    for (size_t i = 0; i < list.size(); ++i)
      if (list[i].size(transposed(list[i]) ? -2 : -1) >= 65536)
        return refuse(function, "a last dimension of 65536 or more");
  return sim::kOk;
}

std::vector<int64_t> ends_of(const Tensor& list, bool cumulative) {
  auto ends = cumulative ? list : at::cumsum(list, 0);
  ends = ends.to(at::kLong).contiguous();
  std::vector<int64_t> values(ends.data_ptr<int64_t>(), ends.data_ptr<int64_t>() + ends.numel());
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] < (i ? values[i - 1] : 0)) throw std::runtime_error("groupList must not decrease");
  return values;
}

Tensor with_bias(const Tensor& product, const Grouped& g, size_t i) {
  if (!g.bias.size() || !g.bias[i]) return product;
  return product + wide(g.bias[i]);
}

void multiply(const Grouped& g, const std::vector<int64_t>& ends) {
  if (g.type == kNoGroups) {
    for (size_t i = 0; i < g.weight.size(); ++i)
      put(Out{g.out[i]}, with_bias(at::matmul(wide(g.x[i]), wide(g.weight[i])), g, i));
    return;
  }
  if (g.x.size() != 1 || g.out.size() != 1)
    throw std::runtime_error("groups with lists of x or out are not simulated");
  auto x = wide(g.x[0]);
  auto out = g.out[0]();
  auto dim = g.type == kRows ? 0 : 1;
  if (ends.back() != x.size(dim))
    throw std::runtime_error("groupList ends at " + std::to_string(ends.back()) + ", x has " +
                             std::to_string(x.size(dim)));
  auto bias = g.bias.size() ? wide(g.bias[0]) : Tensor();
  auto weights = g.weight.size() == 1 ? wide(g.weight[0]) : Tensor();
  int64_t start = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    int64_t n = ends[i] - start;
    if (g.type == kRows) {
      auto weight = weights.defined() ? weights.select(0, i) : wide(g.weight[i]);
      auto product = at::matmul(x.narrow(0, start, n), weight);
      if (bias.defined()) product = product + (weights.defined() ? bias.select(0, i) : wide(g.bias[i]));
      out.narrow(0, start, n).copy_(product);
    } else {
      out.select(0, i).copy_(at::matmul(x.narrow(1, start, n), weights.narrow(0, start, n)));
    }
    start = ends[i];
  }
}

int grouped(const char* function, const Grouped& g, In list, bool cumulative,
            std::initializer_list<Tensors> unsupported, uint64_t* workspace, aclOpExecutor** executor) {
  if (int error = check(function, g, static_cast<bool>(list))) return error;
  for (auto quantized : unsupported)
    if (quantized.size()) return refuse(function, "quantized products are not simulated");
  if (list)
    if (int error = refuse_types(function, "groupList", kI64, {list})) return error;
  return plan(function, workspace, executor,
              [=] { multiply(g, list ? ends_of(list(), cumulative) : std::vector<int64_t>()); });
}

}  // namespace

ACLNN(aclnnGroupedMatmulV2, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset,
      Tensors antiquant_scale, Tensors antiquant_offset, Ints list, int64_t split, int64_t type,
      Tensors out) {
  Grouped g{x, weight, bias, out, split, type};
  if (int error = check(__func__, g, static_cast<bool>(list))) return error;
  REQUIRE(!scale.size() && !offset.size() && !antiquant_scale.size() && !antiquant_offset.size(),
          "quantized products are not simulated");
  KERNEL(multiply(g, list().vec()));
}
ACLNN(aclnnGroupedMatmulV3, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset,
      Tensors antiquant_scale, Tensors antiquant_offset, In list, int64_t split, int64_t type, Tensors out) {
  return grouped(__func__, {x, weight, bias, out, split, type}, list, true,
                 {scale, offset, antiquant_scale, antiquant_offset}, workspace, executor);
}
ACLNN(aclnnGroupedMatmulV4, Tensors x, Tensors weight, Tensors bias, Tensors scale, Tensors offset,
      Tensors antiquant_scale, Tensors antiquant_offset, Tensors token_scale, In list, Tensors activation,
      Tensors activation_scale, Tensors activation_offset, int64_t split, int64_t type, int64_t list_type,
      int64_t activation_type, Tensors out, Tensors feature, Tensors dynamic_scale) {
  REQUIRE(list_type == 0 || list_type == 1, "groupListType must be 0 (cumulative) or 1 (sizes)");
  REQUIRE(activation_type == 0, "activations belong to quantized products");
  return grouped(__func__, {x, weight, bias, out, split, type}, list, list_type == 0,
                 {scale, offset, antiquant_scale, antiquant_offset, token_scale, activation}, workspace,
                 executor);
}
