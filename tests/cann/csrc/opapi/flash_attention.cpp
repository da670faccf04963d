// FlashAttentionScore and its gradient: sequences of one length, in four layouts.
#include "attention.h"
#include "random.h"

using namespace opapi;

namespace {

constexpr int64_t kCopies = 8;  // of each maximum and sum, as the vector unit writes them

bool four(const std::string& layout) { return layout.size() == 4; }

Tensor to_bnsd(const Tensor& x, const std::string& layout, int64_t heads) {
  if (layout == "BNSD") return x;
  if (layout == "BSND") return x.permute({0, 2, 1, 3});
  auto split = x.reshape({x.size(0), x.size(1), heads, -1});
  return layout == "BSH" ? split.permute({0, 2, 1, 3}) : split.permute({1, 2, 0, 3});
}
Tensor from_bnsd(const Tensor& x, const std::string& layout) {
  if (layout == "BNSD") return x;
  if (layout == "BSND") return x.permute({0, 2, 1, 3});
  if (layout == "BSH") return x.permute({0, 2, 1, 3}).reshape({x.size(0), x.size(2), -1});
  return x.permute({2, 0, 1, 3}).reshape({x.size(2), x.size(0), -1});
}
int64_t heads_of(In x, const std::string& layout, int64_t width) {
  if (layout == "BNSD") return x.size(1);
  if (layout == "BSND") return x.size(2);
  return x.size(2) / width;
}

struct Call {
  In q, k, v, pse, drop, mask;
  AttentionOptions options;
  int64_t heads;
  std::string layout;

  int64_t width() const { return four(layout) ? q.size(3) : q.size(2) / heads; }
  int64_t key_heads() const { return heads_of(k, layout, width()); }

  int refuse(const char* function) const {
    if (layout != "BSH" && layout != "SBH" && layout != "BSND" && layout != "BNSD")
      return opapi::refuse(function, "inputLayout must be BSH, SBH, BSND or BNSD, not " + layout);
    int64_t rank = layout.size();
    if (q.dim() != rank || k.dim() != rank || v.dim() != rank)
      return opapi::refuse(function,
                           "query " + shape_text(q) + " or its key or value does not fit layout " + layout);
    if (heads < 1 || (!four(layout) && q.size(2) % heads) ||
        (four(layout) && heads_of(q, layout, 0) != heads))
      return opapi::refuse(function,
                           "headNum " + std::to_string(heads) + " does not fit query " + shape_text(q));
    for (int64_t i = 0; i < rank; ++i)
      if (k.size(i) != v.size(i) && !(i == rank - 1))
        return opapi::refuse(function, "key " + shape_text(k) + " and value " + shape_text(v) +
                                           " differ before the last dimension");
    return refuse_attention(function, q, k, v, pse, mask, options, heads, key_heads(), width());
  }
  AttentionInputs inputs() const {
    AttentionInputs in{wide(to_bnsd(q(), layout, heads)),
                       wide(to_bnsd(k(), layout, key_heads())),
                       wide(to_bnsd(v(), layout, key_heads())),
                       maybe(mask),
                       maybe_wide(pse),
                       std::nullopt};
    std::vector<int64_t> shape{in.q.size(0), in.q.size(1), in.q.size(2), in.k.size(2)};
    if (drop && options.keep < 1)
      in.kept = unpacked_mask(drop(), c10::multiply_integers(shape)).reshape(shape);
    return in;
  }
};

int score(const char* function, const Call& call, Out maximum, Out sum, Out out, uint64_t* workspace,
          aclOpExecutor** executor) {
  if (int error = call.refuse(function)) return error;
  if (int error = refuse_types(function, "softmaxMax, softmaxSum", kF32, {maximum, sum})) return error;
  return plan(function, workspace, executor, [=] {
    auto result = attention(call.inputs(), call.options);
    put(out, from_bnsd(result.out, call.layout));
    put_if(maximum, result.maximum.expand({-1, -1, -1, kCopies}));
    put_if(sum, result.sum.expand({-1, -1, -1, kCopies}));
  });
}

int gradient(const char* function, const Call& call, In grad, In maximum, In sum, In attention, Out dq,
             Out dk, Out dv, uint64_t* workspace, aclOpExecutor** executor) {
  if (int error = call.refuse(function)) return error;
  if (!maximum || !sum || !attention)
    return refuse(function, "softmaxMax, softmaxSum and attentionIn must be given");
  return plan(function, workspace, executor, [=] {
    auto in_order = [&](In x) { return wide(to_bnsd(x(), call.layout, call.heads)); };
    auto g = attention_gradients(call.inputs(), call.options, in_order(grad), in_order(attention),
                                 maximum().narrow(-1, 0, 1), sum().narrow(-1, 0, 1));
    put(dq, from_bnsd(g.q, call.layout));
    put(dk, from_bnsd(g.k, call.layout));
    put(dv, from_bnsd(g.v, call.layout));
  });
}

}  // namespace

ACLNN(aclnnFlashAttentionScore, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      double scale, double keep, int64_t before, int64_t after, int64_t heads, const char* layout,
      int64_t inner, int64_t mode, Out maximum, Out sum, Out softmax, Out out) {
  return score(__func__, {q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout},
               maximum, sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreV2, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      Ints q_start, Ints kv_start, double scale, double keep, int64_t before, int64_t after, int64_t heads,
      const char* layout, int64_t inner, int64_t mode, int64_t pse_type, Out maximum, Out sum, Out softmax,
      Out out) {
  return score(__func__, {q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout},
               maximum, sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreGrad, In q, In k, In v, In grad, In pse, In drop, In padding, In mask,
      In maximum, In sum, In softmax, In attention_out, Ints prefix, double scale, double keep,
      int64_t before, int64_t after, int64_t heads, const char* layout, int64_t inner, int64_t mode, Out dq,
      Out dk, Out dv, Out dpse) {
  return gradient(__func__, {q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout},
                  grad, maximum, sum, attention_out, dq, dk, dv, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreGradV2, In q, In k, In v, In grad, In pse, In drop, In padding, In mask,
      In maximum, In sum, In softmax, In attention_out, Ints prefix, Ints q_start, Ints kv_start,
      double scale, double keep, int64_t before, int64_t after, int64_t heads, const char* layout,
      int64_t inner, int64_t mode, int64_t pse_type, Out dq, Out dk, Out dv, Out dpse) {
  return gradient(__func__, {q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout},
                  grad, maximum, sum, attention_out, dq, dk, dv, workspace, executor);
}
