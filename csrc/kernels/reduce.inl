// Sums over the rows, the columns or all of a matrix; fp32 accumulation in blocks, float64 across blocks.
#include "kernels/column_parts.inl"

// y = scale * sum of all n elements.
inline void sum_all(Ptr x, Ptr y, std::int64_t n, double scale, DType dtype, DType out_dtype) {
  constexpr std::int64_t kBlock = 16 * 1024;
  std::vector<double> parts(static_cast<std::size_t>((n + kBlock - 1) / kBlock));
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto* in = as<const T>(x);
    parallel_blocks(n, kBlock, [&](std::int64_t begin, std::int64_t end) {
      parts[static_cast<std::size_t>(begin / kBlock)] = static_cast<double>(
          sum_lines<T>(end - begin, [&](std::int64_t i, auto k) { return load_ahead(in + begin + i, k); }));
    });
  });
  double sum = 0.0;
  for (const double part : parts) sum += part;
  visit(out_dtype, [&](auto tag) { store1(as<decltype(tag)>(y), static_cast<float>(sum * scale)); });
}

// y[r] = scale * sum over the columns of row r.
inline void sum_last(Ptr x, Ptr y, std::int64_t rows, std::int64_t cols, double scale, DType dtype,
                     DType out_dtype) {
  visit(dtype, [&](auto tag) {
    visit(out_dtype, [&](auto out_tag) {
      using T = decltype(tag);
      parallel_blocks(rows, rows_per_task(cols * static_cast<std::int64_t>(sizeof(T))),
                      [&](std::int64_t begin, std::int64_t end) {
                        for (std::int64_t r = begin; r < end; ++r) {
                          const T* row = as<const T>(x) + r * cols;
                          const float total = sum_lines<T>(
                              cols, [&](std::int64_t i, auto n) { return load_ahead(row + i, n); });
                          store1(as<decltype(out_tag)>(y) + r, total * static_cast<float>(scale));
                        }
                      });
    });
  });
}

// y[c] = scale * sum over the rows of column c.
inline void sum_first(Ptr x, Ptr y, std::int64_t rows, std::int64_t cols, double scale, DType dtype,
                      DType out_dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const RowParts split = split_rows(rows, cols, cols * static_cast<std::int64_t>(sizeof(T)));
    ColumnSums<T> column_sums(split, true);
    parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
      float* sums = column_sums.start(begin);
      for (std::int64_t r = begin; r < end; ++r) {
        const T* row = as<const T>(x) + r * cols;
        each_line<T>(cols, [&](std::int64_t i, auto n) {
          store(sums + i, load(sums + i, n) + load_ahead(row + i, n), n);
        });
        column_sums.end_row(begin, r, end);
      }
    });
    column_sums.finish(y, out_dtype, 1, static_cast<float>(scale));
  });
}
