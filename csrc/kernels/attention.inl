// Attention without the score matrix (Dao 2023), forward and backward. A task is one head of one sequence (or
// a part of it); it packs its keys and values once and walks blocks of kBlock queries by kBlock keys.
//
// The parts in the order of their use:
// clang-format off
#include "kernels/attention_scores.inl"
#include "kernels/attention_forward.inl"
#include "kernels/attention_backward.inl"
// clang-format on

// f(E{}, T{}) with the multiply-add words and storage type of the problem.
template <class F>
MSK_INLINE void visit_engine(const AttentionProblem& p, F&& f) {
#if MSK_AVX512
  if (p.dtype == DType::bfloat16 && has_bf16_dot()) {
    f(Bf16Words{}, bf16{});
    return;
  }
#endif
  visit(p.dtype, [&](auto tag) { f(FloatWords{}, tag); });
}

// Whether results of `width` columns per query go past the cache.
template <class T>
inline bool streams(const AttentionProblem& p, std::int64_t width) {
  std::int64_t rows = 0;
  for (const auto& s : p.sequences) rows += s.q_len;
  return should_stream(rows * p.heads * width * static_cast<std::int64_t>(sizeof(T)));
}

// lse: fp32, one per (batch, head, query row), log-sum-exp of the scores.
inline void attention_forward(const AttentionProblem& p, const AttentionView& q, const AttentionView& k,
                              const AttentionView& v, const AttentionView& o, Ptr lse, std::int64_t lse_batch,
                              std::int64_t lse_head) {
  // Few heads are cut into parts by shape alone, so that results do not depend on the thread count.
  constexpr std::int64_t kWantedTasks = 16;
  const auto pairs = static_cast<std::int64_t>(p.sequences.size()) * p.heads;
  if (pairs == 0) return;
  const std::int64_t parts = (kWantedTasks + pairs - 1) / pairs;
  visit_engine(p, [&](auto engine, auto tag) {
    using E = decltype(engine);
    using T = decltype(tag);
    const bool past_cache = streams<T>(p, p.value_dim);
    parallel_for(pairs * parts, [&](std::int64_t task) {
      const std::int64_t pair = task / parts;
      const std::int64_t length = p.sequences[static_cast<std::size_t>(pair / p.heads)].q_len;
      const std::int64_t share = round_up((length + parts - 1) / parts, kBlock);
      const Span rows{std::min(length, task % parts * share), std::min(length, (task % parts + 1) * share)};
      if (rows.empty()) return;
      forward_task<E, T>(p, pair / p.heads, pair % p.heads, rows, q, k, v, o, past_cache, as<float>(lse),
                         lse_batch, lse_head);
    });
  });
}

// Gradients of attention_forward; `dlse` (0 for none) is the gradient that reaches the log-sum-exp.
inline void attention_backward(const AttentionProblem& p, const AttentionView& q, const AttentionView& k,
                               const AttentionView& v, const AttentionView& o, const AttentionView& dout,
                               Ptr lse, Ptr dlse, std::int64_t lse_batch, std::int64_t lse_head,
                               const AttentionView& dq, const AttentionView& dk, const AttentionView& dv) {
  BackwardViews views{q,         k,       v, o, dout, dq, dk, dv, as<const float>(lse), as<const float>(dlse),
                      lse_batch, lse_head};
  const std::int64_t group = p.heads / p.kv_heads;
  const auto tasks = static_cast<std::int64_t>(p.sequences.size()) * p.kv_heads;
  visit_engine(p, [&](auto engine, auto tag) {
    using E = decltype(engine);
    using T = decltype(tag);
    views.past_cache = streams<T>(p, p.dim);
    parallel_for(tasks, [&](std::int64_t task) {
      const std::int64_t sequence = task / p.kv_heads, kv_head = task % p.kv_heads;
      const AttentionSequence& s = p.sequences[static_cast<std::size_t>(sequence)];
      const std::int64_t dim = round_up(p.dim, kW), value_dim = round_up(p.value_dim, kW);
      Carver counter;
      BackwardBuffers<E>(counter, s.q_len, s.k_len, dim, value_dim);
      Carver carver{scratch(counter.used)};
      BackwardBuffers<E> b(carver, s.q_len, s.k_len, dim, value_dim);
      const std::int64_t keys = round_up(s.k_len, kBlock);
      std::fill(b.dk, b.dk + keys * dim, 0.0f);
      std::fill(b.dv, b.dv + keys * value_dim, 0.0f);
      for (std::int64_t h = 0; h < group; ++h)
        backward_head<E, T>(p, views, b, sequence, kv_head * group + h);
      const auto scale = static_cast<float>(p.scale);
      for (std::int64_t j = 0; j < s.k_len; ++j) {
        const auto at = [&](const AttentionView& view) {
          return as<T>(view.data) + s.batch * view.batch + (s.k_begin + j) * view.row + kv_head * view.head;
        };
        T *key = at(dk), *value = at(dv);
        map_lines(key, p.dim, views.past_cache,
                  [&](std::int64_t c, auto n) { return load_as<T>(b.dk + j * dim + c, n) * scale; });
        map_lines(value, p.value_dim, views.past_cache,
                  [&](std::int64_t c, auto n) { return load_as<T>(b.dv + j * value_dim + c, n); });
      }
      if (views.past_cache) stream_fence();
    });
  });
}

// keep (heads, q_len, k_len) of one sequence as fp32 factors 0 or 1 / (1 - p): what the kernels multiply by.
inline void attention_keep(const AttentionProblem& p, std::int64_t sequence, Ptr keep) {
  const AttentionSequence& s = p.sequences.at(static_cast<std::size_t>(sequence));
  parallel_for(p.heads, [&](std::int64_t head) {
    alignas(64) float block[kBlock];
    for (std::int64_t i = 0; i < s.q_len; ++i) {
      float* row = as<float>(keep) + (head * s.q_len + i) * s.k_len;
      for (std::int64_t k0 = 0; k0 < s.k_len; k0 += kBlock) {
        draw_keep(head_key(p, sequence, head), i, k0 / kBlock, p.drop, block);
        std::copy(block, block + std::min(kBlock, s.k_len - k0), row + k0);
      }
    }
  });
}
