// Vocabulary-parallel cross entropy over a shard of the vocabulary.
// Megatron's three steps: the maximum (to be reduced over the ranks), then per row the sum of exponentials,
// the target's logit and the sum of logits (reduced too), then the gradient from the logits and the
// log-sum-exp.

template <class T>
MSK_INLINE float row_max(const T* row, std::int64_t cols) {
  return max_lines<T>(cols, [&](std::int64_t i, auto n) {
    return fill_rest(load_ahead(row + i, n), -std::numeric_limits<float>::infinity(), n);
  });
}

// peak[r] = max of the row, fp32.
inline void cross_entropy_max(Ptr logits, Ptr peak, std::int64_t rows, std::int64_t cols, DType dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* row = as<const T>(logits) + r * cols;
        as<float>(peak)[r] = row_max(row, cols);
      }
    });
  });
}

// For each row, with logits shifted by peak[r]: sums[0][r] = sum of exp, sums[1][r] = the target's logit (0
// when this shard does not hold it), sums[2][r] = sum of the logits when `smoothing`. target holds int64
// vocabulary ids, the shard is [first, first + cols). `whole`: the shard is all there is, peak is found here,
// while the row is in the cache.
inline void cross_entropy_sums(Ptr logits, Ptr peak, Ptr target, Ptr sums, std::int64_t rows,
                               std::int64_t cols, std::int64_t first, bool smoothing, bool whole,
                               DType dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* row = as<const T>(logits) + r * cols;
        if (whole) as<float>(peak)[r] = row_max(row, cols);
        const float top = as<const float>(peak)[r];
        float exps = 0.0f;
        vf plain{};
        choose(smoothing, [&](auto smooth) {
          exps = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
            const vf v = load(row + i, n) - top;
            if constexpr (smooth.value) plain += fill_rest(v, 0.0f, n);
            return fill_rest(exp_term(v), 0.0f, n);
          });
        });
        const std::int64_t id = as<const std::int64_t>(target)[r] - first;
        float* out = as<float>(sums) + r;
        out[0] = exps;
        out[rows] = id >= 0 && id < cols ? load1(row + id) - top : 0.0f;
        if (smoothing) out[2 * rows] = hsum(plain);
      }
    });
  });
}

// loss[r] from the sums of the whole vocabulary; `share` of it, 0 without label smoothing, is that of every
// one of the shard's cols columns. The logarithm is not left to torch: its library's threads would spin into
// the kernels that follow.
inline void cross_entropy_loss(Ptr sums, Ptr loss, std::int64_t rows, std::int64_t cols, double share) {
  const auto* found = as<const float>(sums);
  parallel_blocks(rows, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const double log_sum = std::log(static_cast<double>(found[r]));
      double value = log_sum - static_cast<double>(found[rows + r]);
      if (share > 0.0) {
        const double mean = static_cast<double>(found[2 * rows + r]) / static_cast<double>(cols);
        value = (1.0 - share) * value + share * (log_sum - mean);
      }
      as<float>(loss)[r] = static_cast<float>(value);
    }
  });
}

// dlogits = grad[r] * (exp(logit - peak[r]) / sum[r] - [id is the target] * on - everywhere), may overwrite
// logits. on = 1 and everywhere = 0 without label smoothing.
inline void cross_entropy_grad(Ptr logits, Ptr peak, Ptr sum, Ptr target, Ptr grad, Ptr dlogits,
                               std::int64_t rows, std::int64_t cols, std::int64_t first, double on,
                               double everywhere, DType dtype, DType out_dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    visit(out_dtype, [&](auto out_tag) {
      using Out = decltype(out_tag);
      const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
      const bool past_cache = should_stream(rows * cols * static_cast<std::int64_t>(sizeof(Out)));
      parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const T* row = as<const T>(logits) + r * cols;
          Out* out = as<Out>(dlogits) + r * cols;
          const float shift = as<const float>(peak)[r];
          const float inverse = 1.0f / as<const float>(sum)[r];
          const float g = as<const float>(grad)[r];
          const float rest = static_cast<float>(everywhere);
          const float factor = g * inverse, base = g * rest;
          const std::int64_t id = as<const std::int64_t>(target)[r] - first;
          const bool here = id >= 0 && id < cols;
          // Read before the row is overwritten, written after: the target's probability less `on`.
          const float hit =
              here ? std::exp(load1(row + id) - shift) * inverse - static_cast<float>(on) - rest : 0.0f;
          map_lines<kTiesAway>(out, cols, past_cache, [&](std::int64_t i, auto n) {
            return exp_for<Out>(load_as<Out>(ahead(row + i, n), n) - shift) * factor - base;
          });
          if (past_cache) stream_fence();
          if (here) store1(out + id, g * hit);
        }
      });
    });
  });
}
