// What forward and backward of attention share: which keys a query sees, dropout, scores of a block.
#include "kernels/tile.inl"

inline constexpr std::int64_t kBlock =
    192;  // a multiple of kMR and kPanel at every level; a register block's sums are carried once per block
inline constexpr float kLog2E = 1.44269504088896341f;
inline constexpr double kLn2 = 0.69314718055994531;
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

MSK_INLINE std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Distance of the rows of a packed right operand of `dim` columns. One register more than the columns: rows a
// power of 2 apart would share a few sets of the first-level cache.
MSK_INLINE std::int64_t leading(std::int64_t dim) { return dim + kW; }

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

// What of the columns `block` a query row sees: all (plain), or `own` less what `hidden` marks.
struct VisibleRow {
  Span own;
  const unsigned char* hidden;
  bool plain;
};

MSK_INLINE VisibleRow visible_row(const AttentionProblem& p, const AttentionSequence& s, const Scores& scores,
                                  Span block, std::int64_t i, std::int64_t k0, std::int64_t width) {
  const Span keys = visible_keys(p, s, i);
  const Span own{std::clamp<std::int64_t>(keys.begin - k0, 0, width),
                 std::clamp<std::int64_t>(keys.end - k0, 0, width)};
  const unsigned char* hidden = scores.mask ? scores.mask + i * scores.mask_row + k0 : nullptr;
  return {own, hidden, !hidden && own.begin <= block.begin && own.end >= block.end};
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
MSK_INLINE void multiply_scores(const typename E::Word* left, std::int64_t ld, Right<E> right,
                                std::int64_t words, const BlockSpans& spans, std::int64_t rows, float* out) {
  multiply<E, false>(rows, kBlock, left, ld, right, out, kBlock, false,
                     [&](std::int64_t row, std::int64_t col) {
                       const Span span = spans.rows[row / kMR];
                       return Span{0, col < span.end && col + kPanel > span.begin ? words : 0};
                     });
}
