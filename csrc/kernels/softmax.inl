// Softmax and log-softmax over the last dimension: scaled, with a boolean mask and / or a causal limit.

// Which columns of a row take part. The mask is (batch, 1 or heads, 1 or queries, keys) of bytes, nonzero =
// left out, addressed by strides that are 0 where it broadcasts.
struct SoftmaxMask {
  const std::uint8_t* bytes;
  std::int64_t stride_batch, stride_head, stride_query;
  std::int64_t heads, queries;

  // The mask of row `r` of x; null when there is none.
  const std::uint8_t* row(std::int64_t r) const {
    if (!bytes) return nullptr;
    return bytes + r / (heads * queries) * stride_batch + r / queries % heads * stride_head +
           r % queries * stride_query;
  }
};

// Scores of left-out columns. Large rather than infinite, as Megatron's: a row with nothing left in gets
// equal probabilities instead of NaN.
inline constexpr float kMaskedScore = -10000.0f;

// x with `value` where the mask beside a row of T is set.
template <class T, class Lanes>
MSK_INLINE vf apply_mask(vf x, const std::uint8_t* mask, float value, Lanes n) {
  return byte_lanes<T>(mask, n) != 0 ? splat(value) : x;
}

struct Shifted {
  float peak, sum;
};

// Maximum of the scaled scores and the sum of exp(score - maximum). `exps`, when given, receives the
// exponentials (softmax); log-softmax needs the sum only. The maximum passes over NaN, the sum does not.
template <class T>
MSK_INLINE Shifted exp_row(const T* x, const std::uint8_t* mask, float scale, std::int64_t cols,
                           float* exps) {
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const auto score = [&](std::int64_t i, auto n) {
    vf v = load_ahead(x + i, n) * scale;
    if (mask) v = apply_mask<T>(v, mask + i, kMaskedScore, n);
    return fill_rest(v, kLowest, n);
  };
  const float peak = max_lines<T>(cols, score);
  const float sum = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
    const vf e = exp_for<T>(score(i, n) - peak);
    if (exps) store(exps + i, e, n);
    return fill_rest(e, 0.0f, n);
  });
  return {peak, sum};
}

// y = softmax(scale * x), masked; rows are (batch, heads, queries) and `causal` lets query q see the first
// keys - queries + q + 1 keys: the others get probability 0.
inline void softmax_forward(bool logarithm, bool causal, Ptr x, Ptr mask, Ptr y, std::int64_t rows,
                            std::int64_t cols, std::int64_t heads, std::int64_t queries,
                            std::int64_t stride_batch, std::int64_t stride_head, std::int64_t stride_query,
                            double scale, DType dtype) {
  if (rows == 0 || cols == 0) return;
  const SoftmaxMask where{
      as<const std::uint8_t>(mask), stride_batch, stride_head, stride_query, heads, queries};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
      const std::unique_ptr<float[]> exps(logarithm ? nullptr : new float[static_cast<std::size_t>(cols)]);
      for (std::int64_t r = begin; r < end; ++r) {
        const T* in = as<const T>(x) + r * cols;
        T* out = as<T>(y) + r * cols;
        const std::int64_t q = r % queries;
        const std::uint8_t* row_mask = where.row(r);
        const std::int64_t seen = causal ? std::clamp<std::int64_t>(cols - queries + q + 1, 0, cols) : cols;
        const Shifted row = exp_row(in, row_mask, static_cast<float>(scale), seen, exps.get());
        if (logarithm) {
          const float log_sum = std::log(row.sum);
          map_lines<kTiesAway>(out, seen, past_cache, [&](std::int64_t i, auto n) {
            vf v = load(in + i, n) * static_cast<float>(scale);
            if (row_mask) v = apply_mask<T>(v, row_mask + i, kMaskedScore, n);
            return (v - row.peak) - log_sum;
          });
        } else {
          const float inverse = 1.0f / row.sum;
          map_lines<kTiesAway>(out, seen, past_cache, [&](std::int64_t i, auto n) {
            const vf e = load(exps.get() + i, n);
            const vf p = e * inverse;
            if constexpr (sizeof(T) == 2) return p;
            return fma(fma(splat(-row.sum), p, e), splat(inverse), p);  // what the slow division gives
          });
        }
        const vf rest = logarithm ? splat(-std::numeric_limits<float>::infinity()) : vf{};
        each_vector(cols - seen, [&](std::int64_t i, auto n) { store(out + seen + i, rest, n); });
      }
      if (past_cache) stream_fence();
    });
  });
}

// dx = scale * y * (dy - sum(dy * y)), for log-softmax scale * (dy - exp(y) * sum(dy)). Columns that the
// causal limit left out have y = 0 and get 0; masked ones get 0 whatever their y, which is not 0 in a row
// that is masked as a whole: its scores are constants.
inline void softmax_backward(bool logarithm, Ptr dy, Ptr y, Ptr mask, Ptr dx, std::int64_t rows,
                             std::int64_t cols, std::int64_t heads, std::int64_t queries,
                             std::int64_t stride_batch, std::int64_t stride_head, std::int64_t stride_query,
                             double scale, DType dtype) {
  if (rows == 0 || cols == 0) return;
  const SoftmaxMask where{
      as<const std::uint8_t>(mask), stride_batch, stride_head, stride_query, heads, queries};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    choose(logarithm, [&](auto is_log) {
      parallel_blocks(rows, rows_per_task(bytes * 2), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const T* grad = as<const T>(dy) + r * cols;
          const T* prob = as<const T>(y) + r * cols;
          T* out = as<T>(dx) + r * cols;
          const std::uint8_t* row_mask = where.row(r);
          const float total = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
            const vf g = load_ahead(grad + i, n);
            return is_log.value ? g : g * load_ahead(prob + i, n);
          });
          const float factor = static_cast<float>(scale);
          map_lines<kTiesAway>(out, cols, past_cache, [&](std::int64_t i, auto n) {
            const vf g = load(grad + i, n);
            const vf p = load(prob + i, n);
            vf d = (is_log.value ? g - exp(p) * total : p * (g - total)) * factor;
            if (row_mask) d = apply_mask<T>(d, row_mask + i, 0.0f, n);
            return d;
          });
        }
        if (past_cache) stream_fence();
      });
    });
  });
}
