// residual + dropout(x + bias), with the mask drawn by the caller (one byte per element, nonzero = kept).
#include "kernels/column_parts.inl"

// x where the mask beside a row of T is set, else 0.
template <class T, class Lanes>
MSK_INLINE vf kept(vf x, const std::uint8_t* mask, Lanes n) {
  return byte_lanes<T>(mask, n) != 0 ? x : vf{};
}

// y = residual + mask * scale * (x + bias); bias and mask may be absent. (rows, cols)
inline void dropout_add_forward(Ptr x, Ptr bias, Ptr residual, Ptr mask, Ptr y, std::int64_t rows,
                                std::int64_t cols, double scale, DType dtype) {
  const auto factor = static_cast<float>(scale);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* add = as<const T>(bias);
        map_lines(as<T>(y) + r * cols, cols, past_cache, [&](std::int64_t i, auto n) {
          const std::int64_t at = r * cols + i;
          vf v = load_ahead(as<const T>(x) + at, n);
          if (add) v += load(add + i, n);
          if (mask) v = kept<T>(v * factor, as<const std::uint8_t>(mask) + at, n);
          return v + load_ahead(as<const T>(residual) + at, n);
        });
      }
      if (past_cache) stream_fence();
    });
  });
}

// dx = mask * scale * dy, dbias = sum over rows of dx (may be absent).
inline void dropout_backward(Ptr dy, Ptr mask, Ptr dx, Ptr dbias, std::int64_t rows, std::int64_t cols,
                             double scale, DType dtype) {
  const auto factor = static_cast<float>(scale);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    const RowParts split = split_rows(rows, cols, bytes);
    ColumnSums<T> bias_sums(split, dbias != 0);
    parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
      float* sums = bias_sums.start(begin);
      for (std::int64_t r = begin; r < end; ++r) {
        map_lines(as<T>(dx) + r * cols, cols, past_cache, [&](std::int64_t i, auto n) {
          const std::int64_t at = r * cols + i;
          const vf d =
              kept<T>(load_ahead(as<const T>(dy) + at, n) * factor, as<const std::uint8_t>(mask) + at, n);
          if (sums) store(sums + i, load(sums + i, n) + d, n);
          return d;
        });
        bias_sums.end_row(begin, r, end);
      }
      if (past_cache) stream_fence();
    });
    bias_sums.finish(dbias, dtype);
  });
}
