// The backward task of attention: one head of one sequence.

template <class E>
struct BackwardBuffers {
  using Word = typename E::Word;
  Word *q, *q_right, *dout, *dout_right, *kt, *vt, *k_right, *p_word, *ds_word, *ds_column;
  float *scores, *dscores, *dq, *dk, *dv, *lse, *delta;

  BackwardBuffers(Carver& carver, std::int64_t q_len, std::int64_t k_len, std::int64_t dim,
                  std::int64_t value_dim) {
    constexpr int kPer = E::kPerWord;
    const std::int64_t rows = round_up(q_len, kBlock), keys = round_up(k_len, kBlock);
    const std::int64_t dim_ld = leading(dim), value_ld = leading(value_dim);
    q = carver.take<Word>(rows * dim_ld / kPer);
    dout = carver.take<Word>(rows * value_ld / kPer);
    q_right = kPer == 1 ? q : carver.take<Word>(rows * dim_ld / kPer);
    dout_right = kPer == 1 ? dout : carver.take<Word>(rows * value_ld / kPer);
    kt = carver.take<Word>(kBlock * dim / kPer);
    vt = carver.take<Word>(kBlock * value_dim / kPer);
    k_right = carver.take<Word>(kBlock * dim_ld / kPer);
    scores = carver.take<float>(kBlock * kBlock);
    dscores = carver.take<float>(kBlock * kBlock);
    if (kPer == 1) {
      p_word = reinterpret_cast<Word*>(scores);
      ds_word = ds_column = reinterpret_cast<Word*>(dscores);
    } else {
      p_word = carver.take<Word>(kBlock * kBlock / kPer);
      ds_word = carver.take<Word>(kBlock * kBlock / kPer);
      ds_column = carver.take<Word>(kBlock * kBlock / kPer);
    }
    dq = carver.take<float>(rows * dim);
    dk = carver.take<float>(keys * dim);
    dv = carver.take<float>(keys * value_dim);
    lse = carver.take<float>(rows);
    delta = carver.take<float>(rows);
  }
};

// Probabilities and score gradients of one block, in place; in bf16 also as the words of both products.
template <class E, bool kDrop, bool kCap>
MSK_INLINE void score_gradients(const AttentionProblem& p, const AttentionSequence& s, const Scores& scores,
                                const BlockSpans& spans, BackwardBuffers<E>& b, std::uint64_t key,
                                std::int64_t i0, std::int64_t live, std::int64_t k0, std::int64_t width) {
  const vf index = lane_index();
  const vf inverse_cap = splat(kCap ? 1.0f / scores.cap : 0.0f);
  alignas(64) float keep[kBlock];
  const std::int64_t padded = round_up(live, kMR);
  for (std::int64_t r = 0; r < padded; ++r) {
    float* row = b.scores + r * kBlock;
    float* grad = b.dscores + r * kBlock;
    const Span block = r < live ? spans.rows[r / kMR] : Span{0, 0};
    const auto clear = [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t c = begin; c < end; c += kW) {
        store(row + c, vf{}, Full{});
        store(grad + c, vf{}, Full{});
      }
    };
    clear(0, block.begin);
    clear(block.end, kBlock);
    if (block.empty()) continue;
    const VisibleRow seen = visible_row(p, s, scores, block, i0 + r, k0, width);
    // A query without keys has log-sum-exp -inf; any finite value keeps its probabilities at 2^-inf = 0.
    // The difference is taken before the change of base: afterwards the rounding of the log-sum-exp would
    // show.
    const vf shift = splat(b.lse[i0 + r] == -kInfinity ? 0.0f : b.lse[i0 + r]);
    const vf delta = splat(b.delta[i0 + r]);
    if constexpr (kDrop) draw_keep(key, i0 + r, k0 / kBlock, p.drop, keep);
    const auto sweep = [&](auto plain) {
      for (std::int64_t c = block.begin; c < block.end; c += kW) {
        vf score{}, x;
        if constexpr (kCap || !plain.value) {
          score = scores.value(load(row + c, Full{}));
          x = (plain.value ? score : hide(score, c, seen.own, seen.hidden, index)) - shift;
        } else {
          x = fma(load(row + c, Full{}), splat(scores.scale), -shift);
        }
        const vf prob = exp2(x * kLog2E);
        vf dprob = load(grad + c, Full{});
        vf used = prob;
        if constexpr (kDrop) {
          const vf kept = load(keep + c, Full{});
          dprob *= kept;
          used *= kept;
        }
        vf dscore = prob * (dprob - delta);
        if constexpr (kCap) {
          const vf t = score * inverse_cap;
          dscore *= 1.0f - t * t;
        }
        store(row + c, used, Full{});
        store(grad + c, dscore, Full{});
      }
    };
    choose(seen.plain, sweep);
  }
  if constexpr (E::kPerWord == 2) {
    auto* ds = reinterpret_cast<bf16*>(b.ds_word);
    for (std::int64_t r = 0; r < padded; r += 2) {
      const float* row = b.scores + r * kBlock;
      const float* grad = b.dscores + r * kBlock;
      for (std::int64_t c = 0; c < kBlock; c += kW) {
        const vh even = narrow_bf16(load(grad + c, Full{})),
                 odd = narrow_bf16(load(grad + kBlock + c, Full{}));
        store_half(ds + r * kBlock + c, even, Full{});
        store_half(ds + (r + 1) * kBlock + c, odd, Full{});
        const vu d = pair_words(even, odd);
        const vu w =
            pair_words(narrow_bf16(load(row + c, Full{})), narrow_bf16(load(row + kBlock + c, Full{})));
        std::memcpy(b.ds_column + r / 2 * kBlock + c, &d, sizeof(d));
        std::memcpy(b.p_word + r / 2 * kBlock + c, &w, sizeof(w));
      }
    }
  }
}

inline constexpr std::int64_t kSummed = kBlock / 2;  // a multiple of kMR

// Gradients that one task makes, and where its log-sum-exp and delta are.
struct BackwardViews {
  AttentionView q, k, v, o, dout, dq, dk, dv;
  const float *lse, *dlse;
  std::int64_t lse_batch, lse_head;
  bool past_cache = false;  // the gradients are written past the cache
};

template <class E, class T>
inline void backward_head(const AttentionProblem& p, const BackwardViews& views, BackwardBuffers<E>& b,
                          std::int64_t sequence, std::int64_t head) {
  constexpr int kPer = E::kPerWord;
  const AttentionSequence& s = p.sequences[static_cast<std::size_t>(sequence)];
  const std::int64_t dim = round_up(p.dim, kW), value_dim = round_up(p.value_dim, kW);
  const std::int64_t words = dim / kPer, value_words = value_dim / kPer;
  const std::int64_t dim_ld = leading(dim), value_ld = leading(value_dim);
  const std::int64_t kv_head = head / (p.heads / p.kv_heads);
  const auto at = [&](const AttentionView& view, std::int64_t row, std::int64_t h) {
    return as<T>(view.data) + s.batch * view.batch + row * view.row + h * view.head;
  };
  const std::int64_t rows = round_up(s.q_len, kBlock);
  pack_rows<E, T>(at(views.q, s.q_begin, head), views.q.row, s.q_len, p.dim, b.q, rows, dim_ld);
  const T* dout = at(views.dout, s.q_begin, head);
  pack_rows<E, T>(dout, views.dout.row, s.q_len, p.value_dim, b.dout, rows, value_ld);
  if (kPer > 1) {
    pack_right<E, T>(at(views.q, s.q_begin, head), views.q.row, s.q_len, p.dim, b.q_right, rows, dim_ld);
    pack_right<E, T>(dout, views.dout.row, s.q_len, p.value_dim, b.dout_right, rows, value_ld);
  }
  const std::int64_t first = s.batch * views.lse_batch + head * views.lse_head + s.q_begin;
  for (std::int64_t i = 0; i < s.q_len; ++i) {
    const T* o = at(views.o, s.q_begin + i, head);
    vf sum{};
    each_vector(p.value_dim, [&](std::int64_t c, auto n) {
      prefetch(o + kRowsAhead * views.o.row + c, n);
      sum = fma(load(dout + i * views.dout.row + c, n), load(o + c, n), sum);
    });
    b.delta[i] = hsum(sum) - (views.dlse ? views.dlse[first + i] : 0.0f);
    b.lse[i] = views.lse[first + i];
  }
  std::fill(b.dq, b.dq + rows * dim, 0.0f);

  const Scores scores = scores_of(p, s, head, 1.0f);
  const std::uint64_t key = head_key(p, sequence, head);
  for (std::int64_t k0 = 0; k0 < s.k_len; k0 += kBlock) {
    const std::int64_t width = std::min(kBlock, s.k_len - k0);
    bool packed = false;
    for (std::int64_t i0 = 0; i0 < s.q_len; i0 += kBlock) {
      const std::int64_t live = std::min(kBlock, s.q_len - i0), padded = round_up(live, kMR);
      const BlockSpans spans = spans_of(p, s, i0, live, k0, width);
      if (!spans.any) continue;
      if (!packed) {
        const T* k = at(views.k, s.k_begin + k0, kv_head);
        pack_transposed<E, T>(k, views.k.row, width, p.dim, b.kt, kBlock, dim);
        pack_right<E, T>(k, views.k.row, width, p.dim, b.k_right, kBlock, dim_ld);
        pack_transposed<E, T>(at(views.v, s.k_begin + k0, kv_head), views.v.row, width, p.value_dim, b.vt,
                              kBlock, value_dim);
        packed = true;
      }
      multiply_scores<E>(b.q + i0 * dim_ld / kPer, dim_ld / kPer, {b.kt, kPanel, kPanel * words}, words,
                         spans, padded, b.scores);
      multiply_scores<E>(b.dout + i0 * value_ld / kPer, value_ld / kPer, {b.vt, kPanel, kPanel * value_words},
                         value_words, spans, padded, b.dscores);
      choose(p.drop > 0, [&](auto drop) {
        choose(scores.cap != 0.0f, [&](auto cap) {
          score_gradients<E, drop.value, cap.value>(p, s, scores, spans, b, key, i0, live, k0, width);
        });
      });
      // In parts of kSummed rows: the rounding of longer sums would exceed torch's.
      for (std::int64_t first = 0; first < padded; first += kSummed) {
        // Query rows that see any key of a group of kMR keys; the rest of their column is zero.
        const auto seen_by = [&](std::int64_t key_row, std::int64_t) {
          const std::int64_t last = std::min(padded, first + kSummed);
          std::int64_t low = last, high = 0;
          for (std::int64_t r = first; r < last; r += kMR) {
            const Span span = spans.rows[r / kMR];
            if (key_row < span.end && key_row + kMR > span.begin) {
              low = std::min(low, r);
              high = r + kMR;
            }
          }
          return Span{low / kPer, high / kPer};
        };
        multiply<E, true>(kBlock, value_dim, b.p_word, kBlock,
                          Right<E>{b.dout_right + i0 * value_ld / kPer, value_ld, kPanel},
                          b.dv + k0 * value_dim, value_dim, true, seen_by);
        multiply<E, true>(kBlock, dim, b.ds_column, kBlock,
                          Right<E>{b.q_right + i0 * dim_ld / kPer, dim_ld, kPanel}, b.dk + k0 * dim, dim,
                          true, seen_by);
      }
      multiply<E, false>(padded, dim, b.ds_word, kBlock / kPer, Right<E>{b.k_right, dim_ld, kPanel},
                         b.dq + i0 * dim, dim, true, [&](std::int64_t row, std::int64_t) {
                           const Span span = spans.rows[row / kMR];
                           return Span{span.begin / kPer, span.end / kPer};
                         });
    }
  }
  const float scale = static_cast<float>(p.scale);
  for (std::int64_t i = 0; i < s.q_len; ++i) {
    T* out = at(views.dq, s.q_begin + i, head);
    map_lines(out, p.dim, views.past_cache,
              [&](std::int64_t c, auto n) { return load_as<T>(b.dq + i * dim + c, n) * scale; });
  }
}
