// Gradient of an embedding table from the gradients of the looked-up rows.

// table[ids[r]] = (accumulate ? table[ids[r]] : 0) + sum over equal ids of grad[r] * row_scale[r], in order
// of r and fp32. Rows of the table that no id names are left alone; ids outside [0, table_rows) and `skip`
// are ignored. row_scale (fp32) may be absent.
inline void embedding_backward(Ptr grad, Ptr ids, Ptr row_scale, Ptr table, std::int64_t rows,
                               std::int64_t cols, std::int64_t table_rows, std::int64_t skip, bool accumulate,
                               DType dtype, DType table_dtype) {
  const auto* id = as<const std::int64_t>(ids);
  std::vector<std::int64_t> order;
  order.reserve(static_cast<std::size_t>(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    if (id[r] >= 0 && id[r] < table_rows && id[r] != skip) order.push_back(r);
  }
  std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) { return id[a] < id[b]; });
  std::vector<std::size_t> starts;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i == 0 || id[order[i]] != id[order[i - 1]]) starts.push_back(i);
  }
  const auto groups = static_cast<std::int64_t>(starts.size());
  starts.push_back(order.size());
  constexpr std::int64_t kWidth = 1024;
  const std::int64_t across = (cols + kWidth - 1) / kWidth;
  visit(dtype, [&](auto tag) {
    visit(table_dtype, [&](auto table_tag) {
      using T = decltype(tag);
      using Table = decltype(table_tag);
      parallel_blocks(groups * across, 16, [&](std::int64_t begin, std::int64_t end) {
        float sums[kWidth];
        for (std::int64_t task = begin; task < end; ++task) {
          const auto group = static_cast<std::size_t>(task / across);
          const std::int64_t first = task % across * kWidth;
          const std::int64_t width = std::min(kWidth, cols - first);
          Table* out = as<Table>(table) + id[order[starts[group]]] * cols + first;
          each_vector(width, [&](std::int64_t i, auto n) {
            store(sums + i, accumulate ? load(out + i, n) : vf{}, n);
          });
          for (std::size_t k = starts[group]; k < starts[group + 1]; ++k) {
            const T* row = as<const T>(grad) + order[k] * cols + first;
            const float scale = row_scale ? as<const float>(row_scale)[order[k]] : 1.0f;
            each_vector(width, [&](std::int64_t i, auto n) {
              store(sums + i, fma(load(row + i, n), splat(scale), load(sums + i, n)), n);
            });
          }
          each_vector(width, [&](std::int64_t i, auto n) { store(out + i, load(sums + i, n), n); });
        }
      });
    });
  });
}
