// Rotary position embedding on the first `rotary` channels of each head; the rest is copied.

// Shapes and strides (in elements) of an array (sequence, batch, heads, channels); channels are adjacent.
struct RopeArray {
  std::int64_t sequence, batch, head;
};

// The tables are scratch arrays beside the two halves of a row of T.
template <class T>
MSK_INLINE void rotate_halves(const T* x, T* y, const float* cos, const float* sin, std::int64_t half,
                              float sign, bool past_cache) {
  // Backward is the rotation by the opposite angle; the two halves of the tables may differ (mRoPE), and then
  // it takes each sine with the input that it multiplied.
  const float* sin_low = sign > 0 ? sin : sin + half;
  const float* sin_high = sign > 0 ? sin + half : sin;
  map_lines(y, y + half, half, past_cache, [&](std::int64_t i, auto n) {
    const vf a = load_ahead(x + i, n);
    const vf b = load_ahead(x + half + i, n);
    return Two{a * load(cos + i, n) - sign * b * load(sin_low + i, n),
               b * load(cos + half + i, n) + sign * a * load(sin_high + i, n)};
  });
}

template <class T>
MSK_INLINE void rotate_pairs(const T* x, T* y, const float* cos, const float* sin, std::int64_t half,
                             RopeLayout layout, bool backward) {
  const bool table_by_half = layout == RopeLayout::to_half;
  for (std::int64_t i = 0; i < half; ++i) {
    const std::int64_t t0 = table_by_half ? i : 2 * i;
    const std::int64_t t1 = table_by_half ? half + i : 2 * i + 1;
    const std::int64_t in0 = table_by_half && backward ? i : 2 * i;
    const std::int64_t in1 = table_by_half && backward ? half + i : 2 * i + 1;
    const std::int64_t out0 = table_by_half && !backward ? i : 2 * i;
    const std::int64_t out1 = table_by_half && !backward ? half + i : 2 * i + 1;
    const float a = load1(x + in0);
    const float b = load1(x + in1);
    if (backward) {
      store1(y + out0, a * cos[t0] + b * sin[t1]);
      store1(y + out1, b * cos[t1] - a * sin[t0]);
    } else {
      store1(y + out0, a * cos[t0] - b * sin[t0]);
      store1(y + out1, b * cos[t1] + a * sin[t1]);
    }
  }
}

// x, y: (sequence, batch, heads, channels) with the given strides; cos, sin: fp32 rows of `rotary` values,
// the row of token (s, b) at s * table_sequence + b * table_batch. `backward` applies the transpose.
inline void rope(RopeLayout layout, bool backward, Ptr x, Ptr y, Ptr cos, Ptr sin, std::int64_t sequence,
                 std::int64_t batch, std::int64_t heads, std::int64_t channels, std::int64_t rotary,
                 std::int64_t x_sequence, std::int64_t x_batch, std::int64_t x_head, std::int64_t y_sequence,
                 std::int64_t y_batch, std::int64_t y_head, std::int64_t table_sequence,
                 std::int64_t table_batch, DType dtype) {
  const RopeArray from{x_sequence, x_batch, x_head};
  const RopeArray to{y_sequence, y_batch, y_head};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = heads * channels * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = layout == RopeLayout::half && x != y && should_stream(sequence * batch * bytes);
    const std::int64_t half = rotary / 2;
    parallel_blocks(sequence * batch, rows_per_task(2 * bytes), [&](std::int64_t begin, std::int64_t end) {
      std::vector<float> tables(static_cast<std::size_t>(4 * half));
      for (std::int64_t token = begin; token < end; ++token) {
        const std::int64_t s = token / batch;
        const std::int64_t b = token % batch;
        const float* c = as<const float>(cos) + s * table_sequence + b * table_batch;
        const float* d = as<const float>(sin) + s * table_sequence + b * table_batch;
        if (layout == RopeLayout::half) {
          float* table = tables.data();
          for (const float* from : {c, c + half, d, d + half}) {
            fill_scratch<T>(table, from, half, 0.0f);
            table += half;
          }
          c = tables.data();
          d = c + 2 * half;
        }
        for (std::int64_t h = 0; h < heads; ++h) {
          const T* in = as<const T>(x) + s * from.sequence + b * from.batch + h * from.head;
          T* out = as<T>(y) + s * to.sequence + b * to.batch + h * to.head;
          if (layout == RopeLayout::half) {
            rotate_halves(in, out, c, d, half, backward ? -1.0f : 1.0f, past_cache);
          } else {
            rotate_pairs(in, out, c, d, half, layout, backward);
          }
          if (in != out && channels > rotary) {
            std::memcpy(out + rotary, in + rotary, static_cast<std::size_t>(channels - rotary) * sizeof(T));
          }
        }
      }
      if (past_cache) stream_fence();
    });
  });
}
