// Conversion of a matrix between storage types; leading dimensions in elements.
inline void convert_matrix(Ptr from, Ptr to, std::int64_t rows, std::int64_t cols, std::int64_t from_ld,
                           std::int64_t to_ld, DType from_dtype, DType to_dtype) {
  visit(from_dtype, [&](auto from_tag) {
    visit(to_dtype, [&](auto to_tag) {
      parallel_blocks(rows, rows_per_task(cols * 4), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const auto* in = as<const decltype(from_tag)>(from) + r * from_ld;
          auto* out = as<decltype(to_tag)>(to) + r * to_ld;
          each_vector(cols, [&](std::int64_t i, auto n) { store(out + i, load(in + i, n), n); });
        }
      });
    });
  });
}
