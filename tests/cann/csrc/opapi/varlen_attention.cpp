// FlashAttention over packed sequences (layout TND: all tokens, heads, head dimension), and the update of two
// partial results in ring attention.
#include "attention.h"
#include "random.h"

using namespace opapi;

namespace {

constexpr int64_t kCopies = 8;

struct Packed {
  In q, k, v, pse, drop, mask;
  Ints q_ends, k_ends;  // cumulative lengths
  AttentionOptions options;
  int64_t heads;
  std::string layout;

  int refuse(const char* function) const {
    if (layout != "TND") return opapi::refuse(function, "inputLayout must be TND, not " + layout);
    if (q.dim() != 3 || k.dim() != 3 || v.dim() != 3)
      return opapi::refuse(function, "query, key and value must have three dimensions");
    if (q.size(1) != heads)
      return opapi::refuse(function,
                           "headNum " + std::to_string(heads) + " does not fit query " + shape_text(q));
    if (q_ends().empty() || q_ends().size() != k_ends().size())
      return opapi::refuse(function, "actualSeqQLen and actualSeqKvLen must be given and equally long");
    if (q_ends().back() != q.size(0) || k_ends().back() != k.size(0))
      return opapi::refuse(function,
                           "the last of actualSeqQLen or actualSeqKvLen is not the number of tokens");
    if (pse) return opapi::refuse(function, "realShift is not simulated with packed sequences");
    return refuse_attention(function, q, k, v, pse, mask, options, heads, k.size(1), q.size(2));
  }

  // Calls f with each sequence: its inputs, and where its queries and keys lie.
  template <class F>
  void each(F f) const {
    auto in_order = [](const Tensor& x, int64_t start, int64_t end) {
      return wide(x.narrow(0, start, end - start)).permute({1, 0, 2}).unsqueeze(0);
    };
    int64_t q_start = 0, k_start = 0, bits = 0;
    Tensor all_kept;
    for (size_t i = 0; i < q_ends().size(); ++i) {
      int64_t q_end = q_ends()[i], k_end = k_ends()[i], sq = q_end - q_start, sk = k_end - k_start;
      AttentionInputs in{in_order(q(), q_start, q_end),
                         in_order(k(), k_start, k_end),
                         in_order(v(), k_start, k_end),
                         std::nullopt,
                         std::nullopt,
                         std::nullopt};
      if (mask) {
        auto m = mask();
        in.mask = options.mode >= kLeftUpCausal ? m : m.narrow(-2, 0, sq).narrow(-1, 0, sk);
      }
      if (drop && options.keep < 1) {  // the sequences' masks follow one another, bit by bit
        if (!all_kept.defined()) all_kept = unpacked_mask(drop(), drop().numel() * 8);
        in.kept = all_kept.narrow(0, bits, heads * sq * sk).reshape({1, heads, sq, sk});
        bits += heads * sq * sk;
      }
      if (sq) f(in, q_start, sq, k_start, sk);
      q_start = q_end;
      k_start = k_end;
    }
  }
};

Tensor to_tnd(const Tensor& x) { return x.squeeze(0).permute({1, 0, 2}); }
Tensor to_bnsd(const Tensor& x) { return x.permute({1, 0, 2}).unsqueeze(0); }

int score(const char* function, const Packed& call, Out maximum, Out sum, Out out, uint64_t* workspace,
          aclOpExecutor** executor) {
  if (int error = call.refuse(function)) return error;
  return plan(function, workspace, executor, [=] {
    auto y = out(), m = maximum(), s = sum();
    call.each([&](const AttentionInputs& in, int64_t start, int64_t n, int64_t, int64_t) {
      auto result = attention(in, call.options);
      y.narrow(0, start, n).copy_(to_tnd(result.out));
      m.narrow(0, start, n).copy_(to_tnd(result.maximum).expand({-1, -1, kCopies}));
      s.narrow(0, start, n).copy_(to_tnd(result.sum).expand({-1, -1, kCopies}));
    });
  });
}

int gradient(const char* function, const Packed& call, In grad, In maximum, In sum, In attention, Out dq,
             Out dk, Out dv, uint64_t* workspace, aclOpExecutor** executor) {
  if (int error = call.refuse(function)) return error;
  if (!maximum || !sum || !attention)
    return refuse(function, "softmaxMax, softmaxSum and attentionIn must be given");
  return plan(function, workspace, executor, [=] {
    auto gq = dq(), gk = dk(), gv = dv(), dy = grad(), y = attention(), m = maximum(), s = sum();
    call.each([&](const AttentionInputs& in, int64_t start, int64_t n, int64_t k_start, int64_t k_n) {
      auto part = [&](const Tensor& x) { return to_bnsd(x.narrow(0, start, n)); };
      auto g = attention_gradients(in, call.options, wide(part(dy)), wide(part(y)), part(m).narrow(-1, 0, 1),
                                   part(s).narrow(-1, 0, 1));
      gq.narrow(0, start, n).copy_(to_tnd(g.q));
      gk.narrow(0, k_start, k_n).copy_(to_tnd(g.k));
      gv.narrow(0, k_start, k_n).copy_(to_tnd(g.v));
    });
  });
}

}  // namespace

ACLNN(aclnnFlashAttentionVarLenScore, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      Ints q_ends, Ints k_ends, double scale, double keep, int64_t before, int64_t after, int64_t heads,
      const char* layout, int64_t inner, int64_t mode, Out maximum, Out sum, Out softmax, Out out) {
  return score(__func__,
               {q, k, v, pse, drop, mask, q_ends, k_ends, {scale, keep, before, after, mode}, heads, layout},
               maximum, sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionVarLenScoreV2, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      Ints q_ends, Ints k_ends, Ints q_start, Ints kv_start, double scale, double keep, int64_t before,
      int64_t after, int64_t heads, const char* layout, int64_t inner, int64_t mode, int64_t pse_type,
      Out maximum, Out sum, Out softmax, Out out) {
  return score(__func__,
               {q, k, v, pse, drop, mask, q_ends, k_ends, {scale, keep, before, after, mode}, heads, layout},
               maximum, sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionUnpaddingScoreGrad, In q, In k, In v, In grad, In pse, In drop, In padding, In mask,
      In maximum, In sum, In softmax, In attention_out, Ints prefix, Ints q_ends, Ints k_ends, double scale,
      double keep, int64_t before, int64_t after, int64_t heads, const char* layout, int64_t inner,
      int64_t mode, Out dq, Out dk, Out dv, Out dpse) {
  return gradient(
      __func__, {q, k, v, pse, drop, mask, q_ends, k_ends, {scale, keep, before, after, mode}, heads, layout},
      grad, maximum, sum, attention_out, dq, dk, dv, workspace, executor);
}
ACLNN(aclnnFlashAttentionUnpaddingScoreGradV2, In q, In k, In v, In grad, In pse, In drop, In padding,
      In mask, In maximum, In sum, In softmax, In attention_out, Ints prefix, Ints q_ends, Ints k_ends,
      Ints q_start, Ints kv_start, double scale, double keep, int64_t before, int64_t after, int64_t heads,
      const char* layout, int64_t inner, int64_t mode, int64_t pse_type, Out dq, Out dk, Out dv, Out dpse) {
  return gradient(
      __func__, {q, k, v, pse, drop, mask, q_ends, k_ends, {scale, keep, before, after, mode}, heads, layout},
      grad, maximum, sum, attention_out, dq, dk, dv, workspace, executor);
}

// Two partial results of attention become one (aclnnRingAttentionUpdate.md): layouts SBH and TND.
ACLNN(aclnnRingAttentionUpdate, In before, In before_maximum, In before_sum, In now, In now_maximum,
      In now_sum, In ends, const char* layout_, Out out, Out maximum, Out sum) {
  TYPES(kFloats, before, now, out);
  TYPES(kF32, before_maximum, before_sum, now_maximum, now_sum, maximum, sum);
  SAME_SHAPES(before, now, out);
  SAME_SHAPES(before_maximum, before_sum, now_maximum, now_sum, maximum, sum);
  std::string layout = layout_;
  REQUIRE(layout == "SBH" || layout == "TND", "inputLayout must be SBH or TND");
  REQUIRE(layout != "TND" || (ends && ends.type() == at::kLong),
          "actualSeqQlen must be an int64 tensor with TND");
  REQUIRE(layout != "TND" || before.size(2) % 64 == 0,
          "the head dimension must be a multiple of 64 with TND");
  KERNEL({
    auto m = at::maximum(before_maximum(), now_maximum());
    auto old_part = before_sum() * at::exp(before_maximum() - m);
    auto new_part = now_sum() * at::exp(now_maximum() - m);
    auto s = old_part + new_part;
    auto weighted = [&](In x, const Tensor& part) {
      auto w = (part / s).narrow(-1, 0, 1);  // (b, n, s, 1) or (t, n, 1)
      auto y = wide(x);
      if (layout == "TND") return y * w;
      auto heads = y.reshape({y.size(0), y.size(1), w.size(1), -1});
      return (heads * w.permute({2, 0, 1, 3})).reshape(y.sizes());
    };
    put(out, weighted(before, old_part) + weighted(now, new_part));
    put(maximum, m);
    put(sum, s);
  });
}
