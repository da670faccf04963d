// Small matrix products out of packed operands, the inner part of attention and of grouped GEMM.
// C[m][n] (+)= sum_k A[m][k] * B[k][n], fp32 accumulation. An operand is an array of `Word`s: one float, or
// two bf16 that are neighbours along k (what vdpbf16ps multiplies), so that k counts words.

// Register block: kMR rows by kNR vectors. It fills the register file: 24 of 32 (AVX-512) or 12 of 16.
inline constexpr int kMR = MSK_AVX512 ? 12 : 6;
inline constexpr int kNR = 2;
inline constexpr int kPanel = kNR * kW;  // columns of a packed panel of B

struct FloatWords {
  using Word = float;
  static constexpr int kPerWord = 1;
  using Vector = vf;
  static MSK_INLINE vf load_words(const float* p) { return load(p, Full{}); }
  static MSK_INLINE vf broadcast(const float* p) {
#if MSK_AVX512
    return _mm512_set1_ps(*p);
#elif MSK_AVX2
    return _mm256_set1_ps(*p);
#else
    return splat(*p);
#endif
  }
  static MSK_INLINE vf multiply_add(vf a, vf b, vf c) { return fma(a, b, c); }
};

#if MSK_AVX512
struct Bf16Words {
  using Word = std::uint32_t;
  static constexpr int kPerWord = 2;
  using Vector = __m512i;
  static MSK_INLINE __m512i load_words(const std::uint32_t* p) { return _mm512_loadu_si512(p); }
  static MSK_INLINE __m512i broadcast(const std::uint32_t* p) {
    return _mm512_set1_epi32(static_cast<int>(*p));
  }
  // As text: the instruction set of this namespace does not name AVX512-BF16; callers ask has_bf16_dot().
  static MSK_INLINE vf multiply_add(__m512i a, __m512i b, vf c) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(c) : "v"(a), "v"(b));
    return c;
  }
};
#endif

// One register block. A is row-major (kColumns: column-major, the product takes its transpose).
template <class E, int kVectors, bool kColumns>
inline __attribute__((noinline)) void tile(std::int64_t k, const typename E::Word* a, std::int64_t lda,
                                           const typename E::Word* b, std::int64_t ldb, float* c,
                                           std::int64_t ldc, bool accumulate) {
  // What is in C joins at the end: sums of sums round less than one long sum.
  vf sum[kMR][kVectors] = {};
  const std::int64_t row = kColumns ? 1 : lda;
  const std::int64_t step = kColumns ? lda : 1;
  for (std::int64_t i = 0; i < k; ++i) {
    typename E::Vector right[kVectors];
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) right[n] = E::load_words(b + n * kW);
    // Base pointers every three rows keep the addresses within x86's registers.
    const typename E::Word* base = a;
#pragma GCC unroll 4
    for (int group = 0; group < kMR / 3; ++group) {
#pragma GCC unroll 3
      for (int r = 0; r < 3; ++r) {
        const typename E::Vector left = E::broadcast(base + r * row);
#pragma GCC unroll 2
        for (int n = 0; n < kVectors; ++n) {
          sum[group * 3 + r][n] = E::multiply_add(left, right[n], sum[group * 3 + r][n]);
        }
      }
      base += 3 * row;
    }
    a += step;
    b += ldb;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kMR; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kVectors; ++n) {
      float* out = c + r * ldc + n * kW;
      store(out, accumulate ? load(out, Full{}) + sum[r][n] : sum[r][n], Full{});
    }
  }
}

// Right operand: panel p holds columns [p * kPanel, ...), `panel` words apart; its rows are `ld` words apart.
template <class E>
struct Right {
  const typename E::Word* data;
  std::int64_t ld, panel;
};

struct Span {
  std::int64_t begin, end;
  bool empty() const { return begin >= end; }
};

// rows: a multiple of kMR; cols: a multiple of kW. which(row, col) gives the words of k that the register
// block at (row, col) needs; a block that needs none is left alone.
template <class E, bool kColumns, class Which>
MSK_INLINE void multiply(std::int64_t rows, std::int64_t cols, const typename E::Word* a, std::int64_t lda,
                         Right<E> b, float* c, std::int64_t ldc, bool accumulate, Which&& which) {
  for (std::int64_t col = 0; col < cols; col += kPanel) {
    const auto* panel = b.data + col / kPanel * b.panel;
    for (std::int64_t row = 0; row < rows; row += kMR) {
      const Span k = which(row, col);
      if (k.empty()) continue;
      const auto* left = kColumns ? a + row + k.begin * lda : a + row * lda + k.begin;
      const auto* right = panel + k.begin * b.ld;
      float* out = c + row * ldc + col;
      if (cols - col >= kPanel) {
        tile<E, kNR, kColumns>(k.end - k.begin, left, lda, right, b.ld, out, ldc, accumulate);
      } else {
        tile<E, 1, kColumns>(k.end - k.begin, left, lda, right, b.ld, out, ldc, accumulate);
      }
    }
  }
}

// ---- packing

// `rows` rows of `cols` elements, `stride` elements apart, become `padded_rows` rows of `padded_cols`
// elements, zero beyond the source. padded_cols is a multiple of kW, hence of E::kPerWord.

// Rows that are asked for ahead of their turn, as rows may lie on pages of their own.
inline constexpr std::int64_t kRowsAhead = 4;

// Row-major words along the columns: the left operand.
template <class E, class T>
inline void pack_rows(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                      typename E::Word* to, std::int64_t padded_rows, std::int64_t padded_cols) {
  const std::int64_t width = padded_cols / E::kPerWord;
  for (std::int64_t r = 0; r < rows; ++r) {
    auto* out = to + r * width;
    if constexpr (E::kPerWord == 1) {
      std::fill(out + cols, out + padded_cols, 0.0f);
      each_vector(cols, [&](std::int64_t i, auto n) {
        prefetch(from + (r + kRowsAhead) * stride + i, n);
        store(out + i, load(from + r * stride + i, n), n);
      });
    } else {
      std::memset(out, 0, static_cast<std::size_t>(width) * 4);
      std::memcpy(out, from + r * stride, static_cast<std::size_t>(cols) * 2);
    }
  }
  std::fill(to + rows * width, to + padded_rows * width, typename E::Word{});
}

// Row-major words along the rows (each word holds E::kPerWord rows): the right operand as it lies.
template <class E, class T>
inline void pack_right(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                       typename E::Word* to, std::int64_t padded_rows, std::int64_t padded_cols) {
  if constexpr (E::kPerWord == 1) {
    pack_rows<E>(from, stride, rows, cols, to, padded_rows, padded_cols);
  } else {
    for (std::int64_t r = 0; r < padded_rows; r += 2) {
      auto* out = to + r / 2 * padded_cols;
      std::fill(out, out + padded_cols, 0u);
      if (r >= rows) continue;
      const T* even = from + r * stride;
      for (std::int64_t c = 0; c < cols; ++c) out[c] = even[c].bits;
      if (r + 1 >= rows) continue;
      const T* odd = even + stride;
      for (std::int64_t c = 0; c < cols; ++c) out[c] |= static_cast<std::uint32_t>(odd[c].bits) << 16;
    }
  }
}

// Transposes a square of kW by kW floats in log2(kW) rounds (Eklundh 1972): the round of bit h exchanges the
// columns with h set of row i for those without of row i + h.
MSK_INLINE void transpose(vf (&rows)[kW]) {
#pragma GCC unroll 4
  for (int h = kW / 2; h > 0; h /= 2) {
    vi low, high;
    for (int c = 0; c < kW; ++c) {
      low[c] = c & h ? kW + (c ^ h) : c;
      high[c] = c & h ? kW + c : c ^ h;
    }
#pragma GCC unroll 16
    for (int i = 0; i < kW; ++i) {
      if (i & h) continue;
      const vf a = rows[i], b = rows[i + h];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + h] = __builtin_shuffle(a, b, high);
    }
  }
}

// A row of words as lanes: kW of them from column `first` on, 0 beyond `cols`.
template <class E, class T>
MSK_INLINE vf word_lanes(const T* row, std::int64_t first, std::int64_t cols) {
  const std::int64_t left = cols - first * E::kPerWord;
  if (left <= 0) return vf{};
  if constexpr (E::kPerWord == 1) {
    if (left >= kW) return load(row + first, Full{});
    return fill_rest(load(row + first, Part{static_cast<int>(left)}), 0.0f, Part{static_cast<int>(left)});
  } else {
    vf words{};
    std::memcpy(&words, row + 2 * first, static_cast<std::size_t>(std::min<std::int64_t>(left, 2 * kW)) * 2);
    return words;
  }
}

// Panels of the transpose: word w of row r goes to panel r / kPanel, at [w][r % kPanel]. `rows` may be at
// most padded_rows, a multiple of kPanel.
template <class E, class T>
inline void pack_transposed(const T* from, std::int64_t stride, std::int64_t rows, std::int64_t cols,
                            typename E::Word* to, std::int64_t padded_rows, std::int64_t padded_cols) {
  const std::int64_t width = padded_cols / E::kPerWord;
  for (std::int64_t r0 = 0; r0 < padded_rows; r0 += kW) {
    auto* panel = to + r0 / kPanel * kPanel * width + r0 % kPanel;
    for (std::int64_t w0 = 0; w0 < width; w0 += kW) {
      vf square[kW];
      for (int r = 0; r < kW; ++r) {
        prefetch(from + (r0 + kW + r) * stride + w0 * E::kPerWord, Full{});
        square[r] = r0 + r < rows ? word_lanes<E>(from + (r0 + r) * stride, w0, cols) : vf{};
      }
      transpose(square);
      const std::int64_t live = std::min<std::int64_t>(kW, width - w0);
      for (std::int64_t w = 0; w < live; ++w) {
        std::memcpy(panel + (w0 + w) * kPanel, &square[w], sizeof(vf));
      }
    }
  }
}
