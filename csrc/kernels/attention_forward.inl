// The forward task of attention: one head of one sequence, or a part of its queries.

template <class E>
struct ForwardBuffers {
  using Word = typename E::Word;
  Word *q, *kt, *v, *weights;
  float *scores, *sums, *out, *top;

  ForwardBuffers(Carver& carver, std::int64_t k_len, std::int64_t dim, std::int64_t value_dim) {
    const std::int64_t keys = round_up(k_len, kBlock);
    q = carver.take<Word>(kBlock * dim / E::kPerWord);
    kt = carver.take<Word>(keys * dim / E::kPerWord);
    v = carver.take<Word>(keys * leading(value_dim) / E::kPerWord);
    weights = E::kPerWord == 1 ? nullptr : carver.take<Word>(kBlock * kBlock / E::kPerWord);
    scores = carver.take<float>(kBlock * kBlock);
    sums = carver.take<float>(kBlock * kW);
    out = carver.take<float>(kBlock * value_dim);
    top = carver.take<float>(kBlock);
  }
};

// Softmax of one block of scores, online: raises the running maximum, rescales what was summed before.
template <class E, bool kDrop>
MSK_INLINE void online_softmax(const AttentionProblem& p, const AttentionSequence& s, const Scores& scores,
                               const BlockSpans& spans, ForwardBuffers<E>& b, std::uint64_t key,
                               std::int64_t i0, std::int64_t live, std::int64_t k0, std::int64_t width,
                               std::int64_t value_dim) {
  const vf index = lane_index();
  alignas(64) float keep[kBlock];
  // A step of one row waits for its reductions; kMR rows take each step together, so that others go on.
  for (std::int64_t r0 = 0; r0 < live; r0 += kMR) {
    const Span block = spans.rows[r0 / kMR];
    if (block.empty()) continue;
    const auto count = static_cast<int>(std::min<std::int64_t>(kMR, live - r0));
    vf best[kMR];
    float factor[kMR], before[kMR];  // what turns the numbers in the block into scores
    for (int j = 0; j < count; ++j) {
      const std::int64_t r = r0 + j;
      const VisibleRow seen = visible_row(p, s, scores, block, i0 + r, k0, width);
      float* row = b.scores + r * kBlock;
      vf top = splat(-kInfinity);
      if (seen.plain && scores.cap == 0.0f && scores.scale > 0.0f) {
        for (std::int64_t c = block.begin; c < block.end; c += kW)
          top = max_or_second(load(row + c, Full{}), top);
        best[j] = top * scores.scale;
        factor[j] = scores.scale;
        continue;
      }
      for (std::int64_t c = block.begin; c < block.end; c += kW) {
        vf x = scores.value(load(row + c, Full{}));
        if (!seen.plain) x = hide(x, c, seen.own, seen.hidden, index);
        store(row + c, x, Full{});
        top = max_or_second(x, top);
      }
      best[j] = top;
      factor[j] = 1.0f;
    }
    for (int j = 0; j < count; ++j) {
      before[j] = b.top[r0 + j];
      b.top[r0 + j] = std::max(before[j], lane_max(best[j]));
    }
    for (int j = 0; j < count; ++j) {
      const std::int64_t r = r0 + j;
      const float peak = b.top[r];
      float* row = b.scores + r * kBlock;
      const vf shift = splat(peak == -kInfinity ? 0.0f : peak), scale = splat(factor[j]);
      if constexpr (kDrop) draw_keep(key, i0 + r, k0 / kBlock, p.drop, keep);
      vf total{};
      for (std::int64_t c = block.begin; c < block.end; c += kW) {
        vf e = exp2(fma(load(row + c, Full{}), scale, -shift));
        total += e;
        if constexpr (kDrop) e *= load(keep + c, Full{});
        if constexpr (E::kPerWord == 1) {
          store(row + c, e, Full{});
        } else {
          store(reinterpret_cast<bf16*>(b.weights) + r * kBlock + c, e, Full{});
        }
      }
      if (peak != before[j] && before[j] != -kInfinity) {
        const vf shrink = exp2(splat(before[j] - peak));
        total = fma(load(b.sums + r * kW, Full{}), shrink, total);
        float* out = b.out + r * value_dim;
        for (std::int64_t c = 0; c < value_dim; c += kW)
          store(out + c, load(out + c, Full{}) * shrink, Full{});
      } else {
        total += load(b.sums + r * kW, Full{});
      }
      store(b.sums + r * kW, total, Full{});
    }
  }
}

template <class E, class T>
inline void forward_task(const AttentionProblem& p, std::int64_t sequence, std::int64_t head, Span rows,
                         const AttentionView& q, const AttentionView& k, const AttentionView& v,
                         const AttentionView& o, bool past_cache, float* lse, std::int64_t lse_batch,
                         std::int64_t lse_head) {
  using Word = typename E::Word;
  const AttentionSequence& s = p.sequences[static_cast<std::size_t>(sequence)];
  const std::int64_t dim = round_up(p.dim, kW), value_dim = round_up(p.value_dim, kW);
  const std::int64_t kv_head = head / (p.heads / p.kv_heads);
  Carver counter;
  ForwardBuffers<E>(counter, s.k_len, dim, value_dim);
  Carver carver{scratch(counter.used)};
  ForwardBuffers<E> b(carver, s.k_len, dim, value_dim);

  const auto at = [&](const AttentionView& view, std::int64_t row, std::int64_t h) {
    return as<T>(view.data) + s.batch * view.batch + row * view.row + h * view.head;
  };
  const Span keys = visible_block(p, s, rows.begin, rows.end, 0, s.k_len);
  const std::int64_t words = dim / E::kPerWord;
  for (std::int64_t k0 = keys.begin / kBlock * kBlock; k0 < keys.end; k0 += kBlock) {
    const std::int64_t width = std::min(kBlock, s.k_len - k0);
    pack_transposed<E, T>(at(k, s.k_begin + k0, kv_head), k.row, width, p.dim, b.kt + k0 * words, kBlock,
                          dim);
    pack_right<E, T>(at(v, s.k_begin + k0, kv_head), v.row, width, p.value_dim,
                     b.v + k0 * leading(value_dim) / E::kPerWord, kBlock, leading(value_dim));
  }

  const Scores scores = scores_of(p, s, head, kLog2E);
  const std::uint64_t key = head_key(p, sequence, head);
  const Word* weights = E::kPerWord == 1 ? reinterpret_cast<const Word*>(b.scores) : b.weights;
  for (std::int64_t i0 = rows.begin; i0 < rows.end; i0 += kBlock) {
    const std::int64_t live = std::min(kBlock, rows.end - i0), padded = round_up(live, kMR);
    pack_rows<E, T>(at(q, s.q_begin + i0, head), q.row, live, p.dim, b.q, padded, dim);
    std::fill(b.top, b.top + live, -kInfinity);
    std::fill(b.sums, b.sums + live * kW, 0.0f);
    std::fill(b.out, b.out + padded * value_dim, 0.0f);
    const Span seen = visible_block(p, s, i0, i0 + live, 0, s.k_len);
    for (std::int64_t k0 = seen.begin / kBlock * kBlock; k0 < seen.end; k0 += kBlock) {
      const std::int64_t width = std::min(kBlock, s.k_len - k0);
      const BlockSpans spans = spans_of(p, s, i0, live, k0, width);
      if (!spans.any) continue;
      multiply_scores<E>(b.q, words, {b.kt + k0 * words, kPanel, kPanel * words}, words, spans, padded,
                         b.scores);
      choose(p.drop > 0, [&](auto drop) {
        online_softmax<E, drop.value>(p, s, scores, spans, b, key, i0, live, k0, width, value_dim);
      });
      multiply<E, false>(padded, value_dim, weights, kBlock / E::kPerWord,
                         Right<E>{b.v + k0 * leading(value_dim) / E::kPerWord, leading(value_dim), kPanel},
                         b.out, value_dim, true, [&](std::int64_t row, std::int64_t) {
                           const Span span = spans.rows[row / kMR];
                           return Span{span.begin / E::kPerWord, span.end / E::kPerWord};
                         });
    }
    for (std::int64_t r = 0; r < live; ++r) {
      const float total = hsum(load(b.sums + r * kW, Full{}));
      // A query that sees no key gets zeros, and minus infinity as log-sum-exp.
      const float inverse = b.top[r] == -kInfinity && total == 0.0f ? 0.0f : 1.0f / total;
      T* out = at(o, s.q_begin + i0 + r, head);
      map_lines(out, p.value_dim, past_cache,
                [&](std::int64_t c, auto n) { return load_as<T>(b.out + r * value_dim + c, n) * inverse; });
      lse[s.batch * lse_batch + head * lse_head + s.q_begin + i0 + r] =
          inverse == 0.0f && total == 0.0f ? -kInfinity
                                           : static_cast<float>(static_cast<double>(b.top[r]) * kLn2 +
                                                                std::log(static_cast<double>(total)));
    }
  }
  if (past_cache) stream_fence();
}
