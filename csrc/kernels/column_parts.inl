// Sums over rows, accumulated in fp32 as partial sums of fixed row blocks: the split depends on the shape
// only, so the result does not depend on the number of threads.

struct RowParts {
  std::int64_t rows, cols, block, parts;
};

// At most 32 parts, none smaller than a task; fewer where a part would have fewer than 16 rows, as adding up
// parts costs as much as adding up rows.
inline RowParts split_rows(std::int64_t rows, std::int64_t cols, std::int64_t bytes_per_row) {
  constexpr std::int64_t kMaxParts = 32, kFewParts = 8, kFewRows = 16;
  const auto rows_of = [&](std::int64_t parts) { return (rows + parts - 1) / parts; };
  const std::int64_t block =
      std::max({rows_per_task(bytes_per_row), rows_of(kMaxParts), std::min(kFewRows, rows_of(kFewParts))});
  return {rows, cols, block, (rows + block - 1) / block};
}

// Column sums of all parts, as scratch arrays beside rows of T. Within a part the rows of a group are summed
// first, then the groups: the error grows with 16 + rows / 16 additions instead of with the rows.
template <class T>
class ColumnSums {
 public:
  ColumnSums(const RowParts& split, bool wanted)
      : split_(split),
        data_(wanted ? new float[static_cast<std::size_t>(2 * split.parts * split.cols)] : nullptr) {}

  // Where the rows of the group of `begin`'s part are added up, set to 0; null when no sums are wanted. Every
  // part is started once, by the thread that fills it.
  float* start(std::int64_t begin) {
    if (!data_) return nullptr;
    std::fill_n(part(begin), split_.cols, 0.0f);
    return part(begin);
  }

  // After row r of the part [begin, end), or after its columns [first, first + width).
  void end_row(std::int64_t begin, std::int64_t r, std::int64_t end) {
    end_row(begin, r, end, 0, split_.cols);
  }
  void end_row(std::int64_t begin, std::int64_t r, std::int64_t end, std::int64_t first, std::int64_t width) {
    if (!data_ || ((r - begin + 1) % kGroup != 0 && r + 1 != end)) return;
    float* from = part(begin) + first;
    float* to = from + split_.cols;
    const bool first_group = r < begin + kGroup, last_group = r + 1 == end;
    each_vector(width, [&](std::int64_t i, auto n) {
      const vf sum = load(from + i, n);
      store(to + i, first_group ? sum : load(to + i, n) + sum, n);
      if (!last_group) store(from + i, vf{}, n);
    });
  }

  // target[c] = scale * the sum of all parts, in order, in `dtype`; 0 when there are none. `arrays`: how many
  // arrays of T side by side a row holds.
  void finish(Ptr target, DType dtype, std::int64_t arrays = 1, float scale = 1.0f) const {
    if (!target) return;
    const std::int64_t width = split_.cols / arrays;
    visit(dtype, [&](auto tag) {
      auto* out = as<decltype(tag)>(target);
      for (std::int64_t at = 0; at < split_.cols; at += width) {
        parallel_blocks(width, 1024, [&](std::int64_t begin, std::int64_t end) {
          put_in_order<T>(out + at + begin, end - begin, [&](std::int64_t i, auto n) {
            vf total{};
            for (std::int64_t p = 0; p < split_.parts; ++p) {
              total += load(data_.get() + (2 * p + 1) * split_.cols + at + begin + i, n);
            }
            return total * scale;
          });
        });
      }
    });
  }

 private:
  float* part(std::int64_t begin) const { return data_.get() + begin / split_.block * 2 * split_.cols; }

  static constexpr std::int64_t kGroup = 16;
  RowParts split_;
  std::unique_ptr<float[]> data_;
};
