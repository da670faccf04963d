// Attention without the score matrix (Dao 2023), forward and backward. A task is one head of one sequence (or
// a part of it); it packs its keys and values once and walks blocks of kBlock queries by kBlock keys.
#include "kernels/tile.inl"

inline constexpr std::int64_t kBlock = 96;  // a multiple of kMR and kPanel at every level
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr double kLn2 = 0.69314718055994531;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

MSK_INLINE std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

MSK_INLINE vf lane_index() {
  vf index;
  for (int i = 0; i < kW; ++i) index[i] = static_cast<float>(i);
  return index;
}

// Memory of this thread, kept for the next call: allocating megabytes per task costs page faults.
inline char* scratch(std::size_t bytes) {
  struct Buffer {
    char* data = nullptr;
    std::size_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.size < bytes) {
    std::free(buffer.data);
    buffer.size = (bytes + 4095) / 4096 * 4096;
    buffer.data = static_cast<char*>(std::aligned_alloc(64, buffer.size));
  }
  return buffer.data;
}

// Hands out parts of the scratch memory: once to count, once to point.
struct Carver {
  char* base = nullptr;
  std::size_t used = 0;
  template <class T>
  T* take(std::int64_t count) {
    T* p = reinterpret_cast<T*>(base + used);
    used += (static_cast<std::size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return p;
  }
};

// ---- visibility

// Keys of [0, k_len) that query row `i` sees by the window.
MSK_INLINE Span visible_keys(const AttentionProblem& p, const AttentionSequence& s, std::int64_t i) {
  const std::int64_t at = i + s.shift;
  Span span{0, s.k_len};
  if (p.left >= 0) span.begin = std::max<std::int64_t>(0, at - p.left);
  if (p.right >= 0) span.end = std::min(s.k_len, at + p.right + 1);
  return span;
}

// The same for any row of [i0, i1), relative to key k0 and within [0, width).
MSK_INLINE Span visible_block(const AttentionProblem& p, const AttentionSequence& s, std::int64_t i0,
                              std::int64_t i1, std::int64_t k0, std::int64_t width) {
  const Span first = visible_keys(p, s, i0), last = visible_keys(p, s, i1 - 1);
  return {std::clamp<std::int64_t>(first.begin - k0, 0, width),
          std::clamp<std::int64_t>(last.end - k0, 0, width)};
}

// ---- dropout

MSK_INLINE std::uint64_t mix64(std::uint64_t x) {  // splitmix64 (Steele et al. 2014)
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

MSK_INLINE vu mix32(vu x) {  // lowbias32 (Wellons 2018)
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

MSK_INLINE vu pair_words(vh low, vh high) {
  return __builtin_convertvector(low, vu) | (__builtin_convertvector(high, vu) << 16);
}

// 0 or 1 / (1 - p) for the kBlock keys of block `block` seen by query `row`. A counter-based generator (two
// rounds of the lowbias32 finaliser under a 64-bit key per row), so that the backward pass draws the same
// again; 16 bits decide about a key. It does not depend on the vector length.
MSK_INLINE void draw_keep(std::uint64_t key, std::int64_t row, std::int64_t block, std::int64_t drop,
                          float* keep) {
  const std::uint64_t k = mix64(key ^ mix64(static_cast<std::uint64_t>(row)));
  const auto low = static_cast<std::uint32_t>(k), high = static_cast<std::uint32_t>(k >> 32);
  const float factor = 65536.0f / static_cast<float>(65536 - drop);
  constexpr std::int64_t kHalf = kBlock / 2;
  const vu threshold = vu{} + static_cast<std::uint32_t>(drop);
  vu lane;
  for (int i = 0; i < kW; ++i) lane[i] = static_cast<std::uint32_t>(i);
  for (std::int64_t c = 0; c < kHalf; c += kW) {
    vu x = (lane + static_cast<std::uint32_t>(block * kHalf + c)) * 0x9e3779b9u;
    x = mix32(mix32(x ^ low) ^ high);
    store(keep + c, (x & 0xffffu) < threshold ? vf{} : splat(factor), Full{});
    store(keep + c + kHalf, (x >> 16) < threshold ? vf{} : splat(factor), Full{});
  }
}

MSK_INLINE std::uint64_t head_key(const AttentionProblem& p, std::int64_t sequence, std::int64_t head) {
  return mix64(p.seed ^ mix64(static_cast<std::uint64_t>(sequence * p.heads + head)));
}

// ---- scores

// What turns a product q.k into a score.
struct Scores {
  float scale, cap;           // score = scale * x, or cap * tanh(scale * x)
  const unsigned char* mask;  // of this head: row i at mask + i * mask_row
  std::int64_t mask_row;

  MSK_INLINE vf value(vf x) const {
    if (cap == 0.0f) return x * scale;
    return splat(cap) * tanh(x * scale);
  }
};

// Scores are in units of 1 / unit: kLog2E makes them base-2 logarithms.
inline Scores scores_of(const AttentionProblem& p, const AttentionSequence& s, std::int64_t head,
                        float unit) {
  Scores scores{};
  if (p.softcap > 0) {
    scores.scale = static_cast<float>(p.scale / p.softcap);
    scores.cap = static_cast<float>(p.softcap) * unit;
  } else {
    scores.scale = static_cast<float>(p.scale) * unit;
  }
  if (p.mask.data) {
    scores.mask = as<const unsigned char>(p.mask.data) + s.batch * p.mask.batch + head * p.mask.head;
    scores.mask_row = p.mask.row;
  }
  return scores;
}

// `x` with minus infinity where column c + lane is outside `span` or hidden by `hidden`.
MSK_INLINE vf hide(vf x, std::int64_t c, Span span, const unsigned char* hidden, vf index) {
  const vf at = index + static_cast<float>(c);
  x = (at < static_cast<float>(span.begin)) | (at >= static_cast<float>(span.end)) ? splat(-kInfinity) : x;
  if (hidden) {
    vf flag{};
    const std::int64_t n = std::min<std::int64_t>(kW, span.end - c);
    for (std::int64_t i = 0; i < n; ++i) flag[i] = hidden[c + i];
    x = flag != 0.0f ? splat(-kInfinity) : x;
  }
  return x;
}

MSK_INLINE Span to_vectors(Span s) { return {s.begin / kW * kW, round_up(s.end, kW)}; }

// Key-wise limits of one block: for each group of kMR query rows the columns that any of them sees.
struct BlockSpans {
  Span rows[kBlock / kMR];
  bool any = false;
};

MSK_INLINE BlockSpans spans_of(const AttentionProblem& p, const AttentionSequence& s, std::int64_t i0,
                               std::int64_t live, std::int64_t k0, std::int64_t width) {
  BlockSpans spans;
  for (std::int64_t r = 0; r < kBlock; r += kMR) {
    Span span{0, 0};
    if (r < live) {
      span = visible_block(p, s, i0 + r, i0 + std::min<std::int64_t>(r + kMR, live), k0, width);
      if (span.empty()) span = {0, 0};
    }
    spans.rows[r / kMR] = to_vectors(span);
    spans.any |= !span.empty();
  }
  return spans;
}

template <class E>
MSK_INLINE void multiply_scores(const typename E::Word* left, Right<E> right, std::int64_t words,
                                const BlockSpans& spans, std::int64_t rows, float* out) {
  multiply<E, false>(rows, kBlock, left, words, right, out, kBlock, false,
                     [&](std::int64_t row, std::int64_t col) {
                       const Span span = spans.rows[row / kMR];
                       return Span{0, col < span.end && col + kPanel > span.begin ? words : 0};
                     });
}

// ---- forward

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

// ---- backward

template <class E>
struct BackwardBuffers {
  using Word = typename E::Word;
  Word *q, *q_right, *dout, *dout_right, *kt, *vt, *k_right, *p_word, *ds_word, *ds_column;
  float *scores, *dscores, *dq, *dk, *dv, *lse, *delta;

  BackwardBuffers(Carver& carver, std::int64_t q_len, std::int64_t k_len, std::int64_t dim,
                  std::int64_t value_dim) {
    constexpr int kPer = E::kPerWord;
    const std::int64_t rows = round_up(q_len, kBlock), keys = round_up(k_len, kBlock);
    q = carver.take<Word>(rows * dim / kPer);
    dout = carver.take<Word>(rows * value_dim / kPer);
    q_right = kPer == 1 ? q : carver.take<Word>(rows * dim / kPer);
    dout_right = kPer == 1 ? dout : carver.take<Word>(rows * value_dim / kPer);
    kt = carver.take<Word>(kBlock * dim / kPer);
    vt = carver.take<Word>(kBlock * value_dim / kPer);
    k_right = carver.take<Word>(kBlock * dim / kPer);
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
template <class E, bool kDrop>
MSK_INLINE void score_gradients(const AttentionProblem& p, const AttentionSequence& s, const Scores& scores,
                                const BlockSpans& spans, BackwardBuffers<E>& b, std::uint64_t key,
                                std::int64_t i0, std::int64_t live, std::int64_t k0, std::int64_t width) {
  const vf index = lane_index();
  const vf inverse_cap = splat(scores.cap == 0.0f ? 0.0f : 1.0f / scores.cap);
  alignas(64) float keep[kBlock];
  const std::int64_t padded = round_up(live, kMR);
  for (std::int64_t r = 0; r < padded; ++r) {
    float* row = b.scores + r * kBlock;
    float* grad = b.dscores + r * kBlock;
    const Span block = r < live ? spans.rows[r / kMR] : Span{0, 0};
    std::fill(row, row + block.begin, 0.0f);
    std::fill(grad, grad + block.begin, 0.0f);
    std::fill(row + block.end, row + kBlock, 0.0f);
    std::fill(grad + block.end, grad + kBlock, 0.0f);
    if (block.empty()) continue;
    Span own = visible_keys(p, s, i0 + r);
    own = {std::clamp<std::int64_t>(own.begin - k0, 0, width),
           std::clamp<std::int64_t>(own.end - k0, 0, width)};
    const unsigned char* hidden = scores.mask ? scores.mask + (i0 + r) * scores.mask_row + k0 : nullptr;
    const bool plain = !hidden && own.begin <= block.begin && own.end >= block.end;
    // A query without keys has log-sum-exp -inf; any finite value keeps its probabilities at 2^-inf = 0.
    // The difference is taken before the change of base: afterwards the rounding of the log-sum-exp would
    // show.
    const float shift = b.lse[i0 + r] == -kInfinity ? 0.0f : b.lse[i0 + r];
    const float delta = b.delta[i0 + r];
    if constexpr (kDrop) draw_keep(key, i0 + r, k0 / kBlock, p.drop, keep);
    for (std::int64_t c = block.begin; c < block.end; c += kW) {
      const vf score = scores.value(load(row + c, Full{}));
      vf x = score;
      if (!plain) x = hide(x, c, own, hidden, index);
      const vf prob = exp2((x - shift) * kLog2E);
      vf dprob = load(grad + c, Full{});
      vf used = prob;
      if constexpr (kDrop) {
        const vf kept = load(keep + c, Full{});
        dprob *= kept;
        used *= kept;
      }
      vf dscore = prob * (dprob - delta);
      if (scores.cap != 0.0f) {
        const vf t = score * inverse_cap;
        dscore *= 1.0f - t * t;
      }
      store(row + c, used, Full{});
      store(grad + c, dscore, Full{});
    }
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

// Gradients that one task makes, and where its log-sum-exp and delta are.
struct BackwardViews {
  AttentionView q, k, v, o, dout, dq, dk, dv;
  const float *lse, *dlse;
  std::int64_t lse_batch, lse_head;
};

template <class E, class T>
inline void backward_head(const AttentionProblem& p, const BackwardViews& views, BackwardBuffers<E>& b,
                          std::int64_t sequence, std::int64_t head) {
  constexpr int kPer = E::kPerWord;
  const AttentionSequence& s = p.sequences[static_cast<std::size_t>(sequence)];
  const std::int64_t dim = round_up(p.dim, kW), value_dim = round_up(p.value_dim, kW);
  const std::int64_t words = dim / kPer, value_words = value_dim / kPer;
  const std::int64_t kv_head = head / (p.heads / p.kv_heads);
  const auto at = [&](const AttentionView& view, std::int64_t row, std::int64_t h) {
    return as<T>(view.data) + s.batch * view.batch + row * view.row + h * view.head;
  };
  const std::int64_t rows = round_up(s.q_len, kBlock);
  pack_rows<E, T>(at(views.q, s.q_begin, head), views.q.row, s.q_len, p.dim, b.q, rows, dim);
  const T* dout = at(views.dout, s.q_begin, head);
  pack_rows<E, T>(dout, views.dout.row, s.q_len, p.value_dim, b.dout, rows, value_dim);
  if (kPer > 1) {
    pack_right<E, T>(at(views.q, s.q_begin, head), views.q.row, s.q_len, p.dim, b.q_right, rows, dim);
    pack_right<E, T>(dout, views.dout.row, s.q_len, p.value_dim, b.dout_right, rows, value_dim);
  }
  const std::int64_t first = s.batch * views.lse_batch + head * views.lse_head + s.q_begin;
  for (std::int64_t i = 0; i < s.q_len; ++i) {
    const T* o = at(views.o, s.q_begin + i, head);
    vf sum{};
    each_vector(p.value_dim, [&](std::int64_t c, auto n) {
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
        pack_right<E, T>(k, views.k.row, width, p.dim, b.k_right, kBlock, dim);
        pack_transposed<E, T>(at(views.v, s.k_begin + k0, kv_head), views.v.row, width, p.value_dim, b.vt,
                              kBlock, value_dim);
        packed = true;
      }
      multiply_scores<E>(b.q + i0 * words, {b.kt, kPanel, kPanel * words}, words, spans, padded, b.scores);
      multiply_scores<E>(b.dout + i0 * value_words, {b.vt, kPanel, kPanel * value_words}, value_words, spans,
                         padded, b.dscores);
      choose(p.drop > 0, [&](auto drop) {
        score_gradients<E, drop.value>(p, s, scores, spans, b, key, i0, live, k0, width);
      });
      // Query rows that see any key of a group of kMR keys; the rest of their column is zero.
      const auto seen_by = [&](std::int64_t key_row, std::int64_t) {
        std::int64_t low = padded, high = 0;
        for (std::int64_t r = 0; r < padded; r += kMR) {
          const Span span = spans.rows[r / kMR];
          if (key_row < span.end && key_row + kMR > span.begin) {
            low = std::min(low, r);
            high = r + kMR;
          }
        }
        return Span{low / kPer, high / kPer};
      };
      multiply<E, true>(kBlock, value_dim, b.p_word, kBlock,
                        Right<E>{b.dout_right + i0 * value_words, value_dim, kPanel}, b.dv + k0 * value_dim,
                        value_dim, true, seen_by);
      multiply<E, true>(kBlock, dim, b.ds_column, kBlock, Right<E>{b.q_right + i0 * words, dim, kPanel},
                        b.dk + k0 * dim, dim, true, seen_by);
      multiply<E, false>(padded, dim, b.ds_word, kBlock / kPer, Right<E>{b.k_right, dim, kPanel},
                         b.dq + i0 * dim, dim, true, [&](std::int64_t row, std::int64_t) {
                           const Span span = spans.rows[row / kMR];
                           return Span{span.begin / kPer, span.end / kPer};
                         });
    }
  }
  const float scale = static_cast<float>(p.scale);
  for (std::int64_t i = 0; i < s.q_len; ++i) {
    T* out = at(views.dq, s.q_begin + i, head);
    each_vector(p.dim,
                [&](std::int64_t c, auto n) { store(out + c, load(b.dq + i * dim + c, Full{}) * scale, n); });
  }
}

// ---- entry points

// f(E{}, T{}) with the multiply-add words and storage type of the problem.
template <class F>
MSK_INLINE void visit_engine(const AttentionProblem& p, F&& f) {
#if MSK_AVX512
  if (p.dtype == kBF16 && has_bf16_dot()) {
    f(Bf16Words{}, bf16{});
    return;
  }
#endif
  visit(p.dtype, [&](auto tag) { f(FloatWords{}, tag); });
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
    parallel_for(pairs * parts, [&](std::int64_t task) {
      const std::int64_t pair = task / parts;
      const std::int64_t length = p.sequences[static_cast<std::size_t>(pair / p.heads)].q_len;
      const std::int64_t share = round_up((length + parts - 1) / parts, kBlock);
      const Span rows{std::min(length, task % parts * share), std::min(length, (task % parts + 1) * share)};
      if (rows.empty()) return;
      forward_task<E, T>(p, pair / p.heads, pair % p.heads, rows, q, k, v, o, as<float>(lse), lse_batch,
                         lse_head);
    });
  });
}

// Gradients of attention_forward; `dlse` (0 for none) is the gradient that reaches the log-sum-exp.
inline void attention_backward(const AttentionProblem& p, const AttentionView& q, const AttentionView& k,
                               const AttentionView& v, const AttentionView& o, const AttentionView& dout,
                               Ptr lse, Ptr dlse, std::int64_t lse_batch, std::int64_t lse_head,
                               const AttentionView& dq, const AttentionView& dk, const AttentionView& dv) {
  const BackwardViews views{
      q, k, v, o, dout, dq, dk, dv, as<const float>(lse), as<const float>(dlse), lse_batch, lse_head};
  const std::int64_t group = p.heads / p.kv_heads;
  const auto tasks = static_cast<std::int64_t>(p.sequences.size()) * p.kv_heads;
  visit_engine(p, [&](auto engine, auto tag) {
    using E = decltype(engine);
    using T = decltype(tag);
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
        each_vector(p.dim, [&](std::int64_t c, auto n) {
          store(key + c, load(b.dk + j * dim + c, Full{}) * scale, n);
        });
        each_vector(p.value_dim, [&](std::int64_t c, auto n) {
          store(value + c, load(b.dv + j * value_dim + c, Full{}), n);
        });
      }
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
