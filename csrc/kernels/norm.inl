// RMSNorm and LayerNorm over the last dimension, forward and backward. kCenter distinguishes the two.
#include "kernels/column_parts.inl"

// The weights plus `offset` (1 for zero-centred gamma) as a scratch array beside rows of T; all `absent` when
// there are none.
template <class T>
inline std::vector<float> fp32_weights(Ptr weight, DType dtype, std::int64_t cols, float offset,
                                       float absent) {
  std::vector<float> w(static_cast<std::size_t>(cols), absent);
  if (weight) {
    visit(dtype, [&](auto tag) { fill_scratch<T>(w.data(), as<const decltype(tag)>(weight), cols, offset); });
  }
  return w;
}

struct NormRows {
  std::int64_t begin, end, cols;
  const float *weight, *bias;
  bool past_cache;
};

template <bool kCenter, class T>
inline void norm_forward_rows(const NormRows& rows, const T* x, const T* residual, T* sum, T* y, float* mean,
                              float* rstd, double eps) {
  const std::int64_t cols = rows.cols;
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const T* row = x + r * cols;
    if (residual) {
      const T* other = residual + r * cols;
      T* out = sum + r * cols;
      map_lines(out, cols, false,
                [&](std::int64_t i, auto n) { return load_ahead(row + i, n) + load_ahead(other + i, n); });
      row = out;
    }
    float mu = 0.0f;
    if constexpr (kCenter) {
      mu = sum_lines<T>(cols, [&](std::int64_t i, auto n) { return load_ahead(row + i, n); }) /
           static_cast<float>(cols);
    }
    const float squares = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
      const vf d = fill_rest((kCenter ? load(row + i, n) : load_ahead(row + i, n)) - mu, 0.0f, n);
      return d * d;
    });
    const auto scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(squares) / static_cast<double>(cols) + eps));
    T* out = y + r * cols;
    map_lines(out, cols, rows.past_cache, [&](std::int64_t i, auto n) {
      const vf v = (load(row + i, n) - mu) * scale * load(rows.weight + i, n);
      return rows.bias ? v + load(rows.bias + i, n) : v;
    });
    if (mean) mean[r] = mu;
    if (rstd) rstd[r] = scale;
  }
  if (rows.past_cache) stream_fence();
}

// y = norm(x [+ residual]) * (weight + weight_offset) [+ bias]; `sum` receives x + residual when it is given.
inline void norm_forward(bool center, Ptr x, Ptr residual, Ptr weight, Ptr bias, Ptr sum, Ptr y, Ptr mean,
                         Ptr rstd, std::int64_t rows, std::int64_t cols, double eps, double weight_offset,
                         DType dtype, DType weight_dtype) {
  if (rows == 0 || cols == 0) return;
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto w = fp32_weights<T>(weight, weight_dtype, cols, static_cast<float>(weight_offset), 1.0f);
    const auto b = bias ? fp32_weights<T>(bias, weight_dtype, cols, 0.0f, 0.0f) : std::vector<float>{};
    const auto bytes = static_cast<std::int64_t>(sizeof(T)) * cols;
    const bool past_cache = should_stream(rows * bytes);
    choose(center, [&](auto c) {
      parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
        norm_forward_rows<c.value>(
            NormRows{begin, end, cols, w.data(), bias ? b.data() : nullptr, past_cache}, as<const T>(x),
            as<const T>(residual), as<T>(sum), as<T>(y), as<float>(mean), as<float>(rstd), eps);
      });
    });
  });
}

template <bool kCenter, class T>
inline void norm_backward_rows(const NormRows& rows, const T* dy, const T* x, const T* dsum,
                               const float* mean, const float* rstd, T* dx, ColumnSums<T>& weight_sums,
                               ColumnSums<T>& bias_sums) {
  const std::int64_t cols = rows.cols;
  float* dweight = weight_sums.start(rows.begin);
  float* dbias = bias_sums.start(rows.begin);
  for (std::int64_t r = rows.begin; r < rows.end; ++r) {
    const T* row = x + r * cols;
    const T* grad = dy + r * cols;
    const float mu = kCenter ? mean[r] : 0.0f;
    const float scale = rstd[r];
    vf plain{};
    const float along = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
      const vf g = load_ahead(grad + i, n);
      const vf xhat = (load_ahead(row + i, n) - mu) * scale;
      const vf gw = g * load(rows.weight + i, n);
      if constexpr (kCenter) plain += gw;
      if (dweight) store(dweight + i, fma(g, xhat, load(dweight + i, n)), n);
      if (dbias) store(dbias + i, load(dbias + i, n) + g, n);
      return fill_rest(gw * xhat, 0.0f, n);
    });
    weight_sums.end_row(rows.begin, r, rows.end);
    bias_sums.end_row(rows.begin, r, rows.end);
    if (!dx) continue;
    const float a = along / static_cast<float>(cols);
    const float p = kCenter ? hsum(plain) / static_cast<float>(cols) : 0.0f;
    T* out = dx + r * cols;
    map_lines(out, cols, rows.past_cache, [&](std::int64_t i, auto n) {
      const vf xhat = (load(row + i, n) - mu) * scale;
      const vf gw = load(grad + i, n) * load(rows.weight + i, n);
      const vf d = scale * (gw - p - xhat * a);
      return dsum ? d + load(dsum + r * cols + i, n) : d;
    });
  }
  if (rows.past_cache) stream_fence();
}

// Gradients of norm_forward. x is what was normalised (x + residual if there was one); dsum, when given, is
// the gradient that reaches that sum from elsewhere and is added to dx. dweight and dbias, in weight_dtype,
// are overwritten.
inline void norm_backward(bool center, Ptr dy, Ptr x, Ptr weight, Ptr dsum, Ptr mean, Ptr rstd, Ptr dx,
                          Ptr dweight, Ptr dbias, std::int64_t rows, std::int64_t cols, double weight_offset,
                          DType dtype, DType weight_dtype) {
  if (cols == 0) return;
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto w = fp32_weights<T>(weight, weight_dtype, cols, static_cast<float>(weight_offset), 1.0f);
    const auto bytes = static_cast<std::int64_t>(sizeof(T)) * cols;
    const RowParts split = split_rows(rows, cols, bytes * 2);
    ColumnSums<T> weight_sums(split, dweight != 0), bias_sums(split, dbias != 0);
    const bool past_cache = should_stream(rows * bytes);
    choose(center, [&](auto c) {
      parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
        norm_backward_rows<c.value>(NormRows{begin, end, cols, w.data(), nullptr, past_cache},
                                    as<const T>(dy), as<const T>(x), as<const T>(dsum), as<const float>(mean),
                                    as<const float>(rstd), as<T>(dx), weight_sums, bias_sums);
      });
    });
    weight_sums.finish(dweight, weight_dtype);
    bias_sums.finish(dbias, weight_dtype);
  });
}
