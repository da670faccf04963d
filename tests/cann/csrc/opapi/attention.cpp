#include "attention.h"

namespace opapi {
namespace {

constexpr float kMasked = -1e30f;

// True where a key must not be seen. Without a mask everything is seen, whatever the mode; a band (before,
// after) that does not fit the mask of mode 0 hides what it excludes, as the blocks that the chip leaves out.
std::optional<Tensor> hidden(int64_t queries, int64_t keys, const AttentionInputs& in,
                             const AttentionOptions& o) {
  if (!in.mask) return std::nullopt;
  auto i = at::arange(queries).unsqueeze(1), j = at::arange(keys).unsqueeze(0);
  int64_t shift = keys - queries;
  auto outside = [&](int64_t from) { return (j > i + from + o.after).logical_or(j < i + from - o.before); };
  Tensor result;
  switch (o.mode) {
    case kLeftUpCausal:
      result = j > i;
      break;
    case kRightDownCausal:
      result = j > i + shift;
      break;
    case kBand:
      result = outside(shift);
      break;
    case kDefaultMask:
      result = in.mask->ne(0).logical_or(outside(0));
      break;
    default:
      result = in.mask->ne(0);
  }
  return sim::fault("mask_sign") ? result.logical_not() : result;
}

Tensor scores(const AttentionInputs& in, const Tensor& k, const AttentionOptions& o) {
  auto s = at::matmul(in.q, k.transpose(-1, -2)) * o.scale;
  if (in.pse) s = s + *in.pse;
  if (auto h = hidden(in.q.size(-2), k.size(-2), in, o)) s = s.masked_fill(*h, kMasked);
  return s;
}

// Keys and values for grouped queries, and their gradients back.
Tensor repeated(const Tensor& x, int64_t times) { return times == 1 ? x : x.repeat_interleave(times, 1); }
Tensor folded(const Tensor& x, int64_t times) {
  if (times == 1) return x;
  return x.reshape({x.size(0), x.size(1) / times, times, x.size(2), x.size(3)}).sum(2);
}

}  // namespace

AttentionResult attention(const AttentionInputs& in, const AttentionOptions& o) {
  int64_t times = in.q.size(1) / in.k.size(1);
  auto s = scores(in, repeated(in.k, times), o);
  auto maximum = s.amax({-1}, true);
  auto e = at::exp(s - maximum);
  auto sum = e.sum(-1, true);
  auto p = e / sum;
  if (in.kept) p = p * *in.kept / o.keep;
  return {at::matmul(p, repeated(in.v, times)), maximum, sum};
}

// The sum over a row of p * dp is that of out * grad, dropout or not: CANN takes it from attentionIn, so that
// one step of a ring, given maximum, sum and output of all steps, finds its part of the whole gradient.
AttentionGradients attention_gradients(const AttentionInputs& in, const AttentionOptions& o,
                                       const Tensor& grad, const Tensor& out, const Tensor& maximum,
                                       const Tensor& sum) {
  int64_t times = in.q.size(1) / in.k.size(1);
  auto k = repeated(in.k, times), v = repeated(in.v, times);
  auto p = at::exp(scores(in, k, o) - maximum) / sum;
  auto dropped = [&](const Tensor& x) { return in.kept ? x * *in.kept / o.keep : x; };
  auto grad_v = at::matmul(dropped(p).transpose(-1, -2), grad);
  auto grad_p = dropped(at::matmul(grad, v.transpose(-1, -2)));
  auto grad_s = p * (grad_p - (out * grad).sum(-1, true)) * o.scale;
  return {at::matmul(grad_s, k), folded(at::matmul(grad_s.transpose(-1, -2), in.q), times),
          folded(grad_v, times)};
}

// Limits: aclnnFlashAttentionScore.md and aclnnFlashAttentionVarLenScore.md, Atlas A2.
int refuse_attention(const char* function, In q, In k, In v, In pse, In mask, const AttentionOptions& o,
                     int64_t q_heads, int64_t k_heads, int64_t width) {
  if (int error = refuse_types(function, "query, key, value", kFloats, {q, k, v})) return error;
  if (q.type() != k.type() || q.type() != v.type() || (pse && pse.type() != q.type()))
    return refuse(function, "query, key, value and realShift differ in dtype");
  if (q_heads < 1 || q_heads > 256)
    return refuse(function, "1 to 256 heads are supported, not " + std::to_string(q_heads));
  if (k_heads < 1 || q_heads % k_heads)
    return refuse(function, std::to_string(q_heads) + " heads are no multiple of the " +
                                std::to_string(k_heads) + " of the keys");
  if (width < 1 || width > 768)
    return refuse(function, "a head dimension of 1 to 768 is supported, not " + std::to_string(width));
  if (o.mode < kDefaultMask || o.mode > kBand)
    return refuse(function, "sparseMode " + std::to_string(o.mode) + " is not simulated");
  if (o.keep <= 0 || o.keep > 1) return refuse(function, "keepProb must be in (0, 1]");
  if (!mask) return sim::kOk;
  if (int error = refuse_types(function, "attenMask", kBool | kU8, {mask})) return error;
  if (o.mode >= kLeftUpCausal && !(mask.size(-1) == 2048 && mask.size(-2) == 2048))
    return refuse(function, "attenMask must be (2048, 2048) with sparseMode " + std::to_string(o.mode) +
                                ", not " + shape_text(mask));
  return sim::kOk;
}

}  // namespace opapi
