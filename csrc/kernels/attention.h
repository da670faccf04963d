#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "kernels/codes.h"

namespace mindspeed_ms::kernels {

// A tensor (batch, row, head, dim) whose last dimension is contiguous: address and strides in elements.
struct AttentionView {
  std::uintptr_t data = 0;
  std::int64_t batch = 0, row = 0, head = 0;
};

// One sequence: its batch entry, the rows of q and of k/v that belong to it, the first row of its log-sum-exp
// (within a head), and the key position that query row 0 is aligned with.
struct AttentionSequence {
  std::int64_t batch, q_begin, q_len, k_begin, k_len, shift;
};

struct AttentionProblem {
  std::vector<AttentionSequence> sequences;
  std::int64_t heads, kv_heads, dim, value_dim;
  double scale, softcap;     // softcap 0: none
  std::int64_t left, right;  // query i sees keys [i + shift - left, i + shift + right]; negative: no bound
  AttentionView mask;        // bytes, nonzero hides the key; data 0: none
  std::int64_t drop;         // a probability is dropped when its 16 random bits are below this
  std::uint64_t seed;
  DType dtype;
};

}  // namespace mindspeed_ms::kernels
