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
    v = carver.take<Word>(keys * value_dim / E::kPerWord);
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
  for (std::int64_t r = 0; r < live; ++r) {
    const Span block = spans.rows[r / kMR];
    if (block.empty()) continue;
    Span own = visible_keys(p, s, i0 + r);
    own = {std::clamp<std::int64_t>(own.begin - k0, 0, width),
           std::clamp<std::int64_t>(own.end - k0, 0, width)};
    float* row = b.scores + r * kBlock;
    const unsigned char* hidden = scores.mask ? scores.mask + (i0 + r) * scores.mask_row + k0 : nullptr;
    const bool plain = !hidden && own.begin <= block.begin && own.end >= block.end;
    vf best = splat(-kInfinity);
    for (std::int64_t c = block.begin; c < block.end; c += kW) {
      vf x = scores.value(load(row + c, Full{}));
      if (!plain) x = hide(x, c, own, hidden, index);
      store(row + c, x, Full{});
      best = max_or_second(x, best);
    }
    const float before = b.top[r];
    const float peak = std::max(before, lane_max(best));
    const vf shift = splat(peak == -kInfinity ? 0.0f : peak);
    if constexpr (kDrop) draw_keep(key, i0 + r, k0 / kBlock, p.drop, keep);
    vf total{};
    for (std::int64_t c = block.begin; c < block.end; c += kW) {
      vf e = exp2(load(row + c, Full{}) - shift);
      total += e;
      if constexpr (kDrop) e *= load(keep + c, Full{});
      if constexpr (E::kPerWord == 1) {
        store(row + c, e, Full{});
      } else {
        store(reinterpret_cast<bf16*>(b.weights) + r * kBlock + c, e, Full{});
      }
    }
    if (peak != before && before != -kInfinity) {
      const vf shrink = exp2(splat(before - peak));
      total = fma(load(b.sums + r * kW, Full{}), shrink, total);
      float* out = b.out + r * value_dim;
      for (std::int64_t c = 0; c < value_dim; c += kW) store(out + c, load(out + c, Full{}) * shrink, Full{});
    } else {
      total += load(b.sums + r * kW, Full{});
    }
    store(b.sums + r * kW, total, Full{});
    b.top[r] = peak;
  }
}

template <class E, class T>
inline void forward_task(const AttentionProblem& p, std::int64_t sequence, std::int64_t head, Span rows,
                         const AttentionView& q, const AttentionView& k, const AttentionView& v,
                         const AttentionView& o, float* lse, std::int64_t lse_batch, std::int64_t lse_head) {
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
                     b.v + k0 * value_dim / E::kPerWord, kBlock, value_dim);
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
      multiply_scores<E>(b.q, {b.kt + k0 * words, kPanel, kPanel * words}, words, spans, padded, b.scores);
      choose(p.drop > 0, [&](auto drop) {
        online_softmax<E, drop.value>(p, s, scores, spans, b, key, i0, live, k0, width, value_dim);
      });
      multiply<E, false>(padded, value_dim, weights, kBlock / E::kPerWord,
                         Right<E>{b.v + k0 * value_dim / E::kPerWord, value_dim, kPanel}, b.out, value_dim,
                         true, [&](std::int64_t row, std::int64_t) {
                           const Span span = spans.rows[row / kMR];
                           return Span{span.begin / E::kPerWord, span.end / E::kPerWord};
                         });
    }
    for (std::int64_t r = 0; r < live; ++r) {
      const float total = hsum(load(b.sums + r * kW, Full{}));
      // A query that sees no key gets zeros, and minus infinity as log-sum-exp.
      const float inverse = b.top[r] == -kInfinity && total == 0.0f ? 0.0f : 1.0f / total;
      T* out = at(o, s.q_begin + i0 + r, head);
      each_vector(p.value_dim, [&](std::int64_t c, auto n) {
        store(out + c, load(b.out + r * value_dim + c, Full{}) * inverse, n);
      });
      lse[s.batch * lse_batch + head * lse_head + s.q_begin + i0 + r] =
          inverse == 0.0f && total == 0.0f ? -kInfinity
                                           : static_cast<float>(static_cast<double>(b.top[r]) * kLn2 +
                                                                std::log(static_cast<double>(total)));
    }
  }
}
