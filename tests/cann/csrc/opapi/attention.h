// Attention in (batch, heads, sequence, head dimension) and fp32, which the operators of every layout share.
#pragma once
#include "op.h"

namespace opapi {

enum SparseMode { kDefaultMask, kAllMask, kLeftUpCausal, kRightDownCausal, kBand };

struct AttentionOptions {
  double scale, keep;
  int64_t before, after, mode;
};
struct AttentionInputs {
  Tensor q, k, v;                   // k and v may have fewer heads
  std::optional<Tensor> mask, pse;  // mask: non-zero where a key must not be seen
  std::optional<Tensor> kept;       // dropout: bool, (batch, heads, queries, keys)
};
struct AttentionResult {
  Tensor out, maximum, sum;  // the latter two (batch, heads, queries, 1)
};
struct AttentionGradients {
  Tensor q, k, v;
};

AttentionResult attention(const AttentionInputs& in, const AttentionOptions& options);
AttentionGradients attention_gradients(const AttentionInputs& in, const AttentionOptions& options,
                                       const Tensor& grad, const Tensor& out, const Tensor& maximum,
                                       const Tensor& sum);
// The checks of query, key, value, mask and options that all layouts share.
int refuse_attention(const char* function, In q, In k, In v, In pse, In mask, const AttentionOptions& options,
                     int64_t q_heads, int64_t k_heads, int64_t width);

}  // namespace opapi
