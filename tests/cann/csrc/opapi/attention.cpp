// FlashAttentionScore and its gradient, fixed and variable lengths. Everything is computed as (batch, heads,
// sequence, head dimension) in fp32.
#include "op.h"
#include "random.h"

using namespace opapi;

namespace {

constexpr float kMasked = -1e30f;
enum SparseMode { kDefaultMask, kAllMask, kLeftUpCausal, kRightDownCausal, kBand };

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
int64_t key_heads(In q, In k, const std::string& layout, int64_t heads) {
  if (layout == "BNSD") return k.size(1);
  if (layout == "BSND") return k.size(2);
  return k.size(2) / (q.size(2) / heads);
}

struct Options {
  double scale, keep;
  int64_t before, after, mode;
};

// True where a key must not be seen.
std::optional<Tensor> masked(int64_t queries, int64_t keys, const std::optional<Tensor>& mask,
                             const Options& o) {
  auto i = at::arange(queries).unsqueeze(1), j = at::arange(keys).unsqueeze(0);
  int64_t shift = keys - queries;
  bool wrong = sim::fault("mask_sign");
  std::optional<Tensor> hidden;
  if (o.mode == kLeftUpCausal)
    hidden = j > i;
  else if (o.mode == kRightDownCausal)
    hidden = j > i + shift;
  else if (o.mode == kBand)
    hidden = (j > i + shift + o.after).logical_or(j < i + shift - o.before);
  else if (mask)
    hidden = mask->ne(0);
  if (hidden && wrong) return hidden->logical_not();
  return hidden;
}

struct Probabilities {
  Tensor maximum, sum, values;
};
Tensor scores(const Tensor& q, const Tensor& k, const std::optional<Tensor>& mask,
              const std::optional<Tensor>& pse, const Options& o) {
  auto s = at::matmul(q, k.transpose(-1, -2)) * o.scale;
  if (pse) s = s + *pse;
  if (auto hidden = masked(q.size(-2), k.size(-2), mask, o)) s = s.masked_fill(*hidden, kMasked);
  return s;
}
Probabilities softmax(const Tensor& s) {
  auto maximum = s.amax({-1}, true);
  auto e = at::exp(s - maximum);
  auto sum = e.sum(-1, true);
  return {maximum, sum, e / sum};
}

// Repeats the heads of keys and values for grouped queries, and sums their gradients back.
Tensor repeated(const Tensor& x, int64_t times) { return times == 1 ? x : x.repeat_interleave(times, 1); }
Tensor folded(const Tensor& x, int64_t times) {
  return times == 1 ? x : x.reshape({x.size(0), x.size(1) / times, times, x.size(2), x.size(3)}).sum(2);
}

std::optional<Tensor> kept(In drop_mask, const Tensor& p, double keep) {
  if (!drop_mask || keep >= 1) return std::nullopt;
  return unpacked_mask(drop_mask(), p.numel()).reshape(p.sizes()) / keep;
}

void forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask,
             const std::optional<Tensor>& pse, In drop_mask, const Options& o, Probabilities& p,
             Tensor& out) {
  int64_t times = q.size(1) / k.size(1);
  p = softmax(scores(q, repeated(k, times), mask, pse, o));
  auto dropped = kept(drop_mask, p.values, o.keep);
  out = at::matmul(dropped ? p.values * *dropped : p.values, repeated(v, times));
}

struct Gradients {
  Tensor q, k, v;
};
Gradients backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad,
                   const Tensor& maximum, const Tensor& sum, const std::optional<Tensor>& mask,
                   const std::optional<Tensor>& pse, In drop_mask, const Options& o) {
  int64_t times = q.size(1) / k.size(1);
  auto all_k = repeated(k, times), all_v = repeated(v, times);
  auto p = at::exp(scores(q, all_k, mask, pse, o) - maximum) / sum;
  auto dropped = kept(drop_mask, p, o.keep);
  auto grad_v = at::matmul((dropped ? p * *dropped : p).transpose(-1, -2), grad);
  auto grad_p = at::matmul(grad, all_v.transpose(-1, -2));
  if (dropped) grad_p = grad_p * *dropped;
  auto grad_s = p * (grad_p - (grad_p * p).sum(-1, true)) * o.scale;
  return {at::matmul(grad_s, all_k), folded(at::matmul(grad_s.transpose(-1, -2), q), times),
          folded(grad_v, times)};
}

// aclnnFlashAttentionScore: fp32, fp16 or bf16, all three alike; the mask is bool or uint8 and, with a sparse
// mode of 2, 3 or 4, the compressed 2048 x 2048 one; the head dimension is at most 768.
int check(const char* function, In q, In k, In v, In mask, int64_t heads, const std::string& layout,
          int64_t mode, double keep) {
  if (int error = refuse_types(function, "query, key, value", kFloats, {q, k, v})) return error;
  if (q.type() != k.type() || q.type() != v.type())
    return refuse(function, "query, key and value differ in dtype");
  if (layout != "BSH" && layout != "SBH" && layout != "BSND" && layout != "BNSD")
    return refuse(function, "inputLayout " + layout + " (BSH, SBH, BSND, BNSD are known)");
  int64_t rank = layout.size();
  if (q.dim() != rank || k.dim() != rank || v.dim() != rank)
    return refuse(function, "a rank that does not fit " + layout);
  if (heads <= 0) return refuse(function, "headNum must be positive");
  if (mode < kDefaultMask || mode > kBand)
    return refuse(function, "sparseMode " + std::to_string(mode) + " is not simulated");
  if (keep <= 0 || keep > 1) return refuse(function, "keepProb must be in (0, 1]");
  int64_t width = rank == 4 ? q.size(3) : q.size(2) / heads;
  if (width > 768) return refuse(function, "a head dimension above 768");
  if (mask) {
    if (int error = refuse_types(function, "attenMask", kBool | kU8, {mask})) return error;
    if (mode >= kLeftUpCausal && !(mask.size(-1) == 2048 && mask.size(-2) == 2048))
      return refuse(function, "attenMask " + shape_text(mask) + " must be (2048, 2048) with sparseMode " +
                                  std::to_string(mode));
  } else if (mode >= kAllMask) {
    return refuse(function, "sparseMode " + std::to_string(mode) + " needs an attenMask");
  }
  return sim::kOk;
}

struct Shapes {  // the inputs as (b, n, s, d) in fp32
  Shapes(In q_, In k_, In v_, int64_t heads, const std::string& layout)
      : kv_heads(key_heads(q_, k_, layout, heads)),
        q(wide(to_bnsd(q_(), layout, heads))),
        k(wide(to_bnsd(k_(), layout, kv_heads))),
        v(wide(to_bnsd(v_(), layout, kv_heads))) {}
  int64_t kv_heads;
  Tensor q, k, v;
};

int score(const char* function, In q, In k, In v, In pse, In drop, In mask, const Options& o, int64_t heads,
          const char* layout_, Out maximum, Out sum, Out out, uint64_t* workspace, aclOpExecutor** executor) {
  std::string layout = layout_;
  if (int error = check(function, q, k, v, mask, heads, layout, o.mode, o.keep)) return error;
  return plan(function, workspace, executor, [=] {
    Shapes s(q, k, v, heads, layout);
    Probabilities p;
    Tensor y;
    forward(s.q, s.k, s.v, maybe(mask), maybe_wide(pse), drop, o, p, y);
    put(out, from_bnsd(y, layout));
    if (maximum)
      put(maximum, p.maximum.expand({-1, -1, -1, 8}));  // eight copies, as the vector unit writes them
    if (sum) put(sum, p.sum.expand({-1, -1, -1, 8}));
  });
}

int gradient(const char* function, In q, In k, In v, In grad, In pse, In drop, In mask, In maximum, In sum,
             const Options& o, int64_t heads, const char* layout_, Out dq, Out dk, Out dv,
             uint64_t* workspace, aclOpExecutor** executor) {
  std::string layout = layout_;
  if (int error = check(function, q, k, v, mask, heads, layout, o.mode, o.keep)) return error;
  if (!maximum || !sum) return refuse(function, "softmaxMax and softmaxSum must be given");
  return plan(function, workspace, executor, [=] {
    Shapes s(q, k, v, heads, layout);
    auto g = backward(s.q, s.k, s.v, wide(to_bnsd(grad(), layout, heads)), maximum().narrow(-1, 0, 1),
                      sum().narrow(-1, 0, 1), maybe(mask), maybe_wide(pse), drop, o);
    put(dq, from_bnsd(g.q, layout));
    put(dk, from_bnsd(g.k, layout));
    put(dv, from_bnsd(g.v, layout));
  });
}

}  // namespace

ACLNN(aclnnFlashAttentionScore, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      double scale, double keep, int64_t before, int64_t after, int64_t heads, const char* layout,
      int64_t inner, int64_t mode, Out maximum, Out sum, Out softmax_out, Out out) {
  return score(__func__, q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout, maximum,
               sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreV2, In q, In k, In v, In pse, In drop, In padding, In mask, Ints prefix,
      Ints q_start, Ints kv_start, double scale, double keep, int64_t before, int64_t after, int64_t heads,
      const char* layout, int64_t inner, int64_t mode, int64_t pse_type, Out maximum, Out sum,
      Out softmax_out, Out out) {
  return score(__func__, q, k, v, pse, drop, mask, {scale, keep, before, after, mode}, heads, layout, maximum,
               sum, out, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreGrad, In q, In k, In v, In grad, In pse, In drop, In padding, In mask,
      In maximum, In sum, In softmax_in, In attention, Ints prefix, double scale, double keep, int64_t before,
      int64_t after, int64_t heads, const char* layout, int64_t inner, int64_t mode, Out dq, Out dk, Out dv,
      Out dpse) {
  return gradient(__func__, q, k, v, grad, pse, drop, mask, maximum, sum, {scale, keep, before, after, mode},
                  heads, layout, dq, dk, dv, workspace, executor);
}
ACLNN(aclnnFlashAttentionScoreGradV2, In q, In k, In v, In grad, In pse, In drop, In padding, In mask,
      In maximum, In sum, In softmax_in, In attention, Ints prefix, Ints q_start, Ints kv_start, double scale,
      double keep, int64_t before, int64_t after, int64_t heads, const char* layout, int64_t inner,
      int64_t mode, int64_t pse_type, Out dq, Out dk, Out dv, Out dpse) {
  return gradient(__func__, q, k, v, grad, pse, drop, mask, maximum, sum, {scale, keep, before, after, mode},
                  heads, layout, dq, dk, dv, workspace, executor);
}
