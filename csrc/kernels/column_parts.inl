// Sums over rows, accumulated in fp32 as partial sums of fixed row blocks: the split depends on the shape
// only, so the result does not depend on the number of threads.

struct RowParts {
  std::int64_t rows, cols, block, parts;
};

// At most 64 parts, none smaller than a task.
inline RowParts split_rows(std::int64_t rows, std::int64_t cols, std::int64_t bytes_per_row) {
  constexpr std::int64_t kMaxParts = 64;
  const std::int64_t block = std::max(rows_per_task(bytes_per_row), (rows + kMaxParts - 1) / kMaxParts);
  return {rows, cols, block, (rows + block - 1) / block};
}

// target[c] = sum over parts of from[part][c], in order; 0 when there are no parts.
inline void add_parts(const RowParts& split, const float* from, float* target) {
  parallel_blocks(split.cols, 1024, [&](std::int64_t begin, std::int64_t end) {
    each_vector(end - begin, [&](std::int64_t i, auto n) {
      vf total{};
      for (std::int64_t p = 0; p < split.parts; ++p) total += load(from + p * split.cols + begin + i, n);
      store(target + begin + i, total, n);
    });
  });
}
