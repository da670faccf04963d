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

// Column sums of all parts. Within a part the rows of a group are summed first, then the groups: the error
// grows with 16 + rows / 16 additions instead of with the rows.
class ColumnSums {
 public:
  ColumnSums(const RowParts& split, bool wanted)
      : split_(split), data_(static_cast<std::size_t>(wanted ? 2 * split.parts * split.cols : 0)) {}

  // Where the rows of the group of `begin`'s part are added up; null when no sums are wanted.
  float* group(std::int64_t begin) {
    return data_.empty() ? nullptr : data_.data() + begin / split_.block * 2 * split_.cols;
  }

  // After row r of the part [begin, end), or after its columns [first, first + width).
  void end_row(std::int64_t begin, std::int64_t r, std::int64_t end) {
    end_row(begin, r, end, 0, split_.cols);
  }
  void end_row(std::int64_t begin, std::int64_t r, std::int64_t end, std::int64_t first, std::int64_t width) {
    if (data_.empty() || ((r - begin + 1) % kGroup != 0 && r + 1 != end)) return;
    float* from = group(begin) + first;
    float* to = from + split_.cols;
    each_vector(width, [&](std::int64_t i, auto n) {
      store(to + i, load(to + i, n) + load(from + i, n), n);
      store(from + i, vf{}, n);
    });
  }

  // target[c] = the sum of all parts, in order; 0 when there are none.
  void finish(float* target) const {
    if (!target) return;
    parallel_blocks(split_.cols, 1024, [&](std::int64_t begin, std::int64_t end) {
      each_vector(end - begin, [&](std::int64_t i, auto n) {
        vf total{};
        for (std::int64_t p = 0; p < split_.parts; ++p) {
          total += load(data_.data() + (2 * p + 1) * split_.cols + begin + i, n);
        }
        store(target + begin + i, total, n);
      });
    });
  }

 private:
  static constexpr std::int64_t kGroup = 16;
  RowParts split_;
  std::vector<float> data_;
};
