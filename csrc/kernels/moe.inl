// Mixture of experts: routing scores with their top k, and rows gathered and summed by index.

// ---- router -----------------------------------------------------------------------------------------------

// Megatron adds it to a sum of sigmoids before it divides by it.
inline constexpr float kSumFloor = 1e-20f;

struct Router {
  RouterScore score;
  std::int64_t experts, topk, groups, group_topk;  // groups 0: none
  float scale;
  bool all;  // probabilities of all experts, whatever is chosen: what the auxiliary loss needs
};

MSK_INLINE bool larger(float a, float b) { return a > b || (a != a && b == b); }

// Marks the k largest of n values, NaN above all, of equal ones the first. `chosen` starts as 0.
inline void choose_largest(const float* value, std::int64_t n, std::int64_t k, std::int64_t* order,
                           std::uint8_t* chosen) {
  std::int64_t held = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (held == k && !larger(value[i], value[order[k - 1]])) continue;
    std::int64_t at = held < k ? held++ : k - 1;
    for (; at > 0 && larger(value[i], value[order[at - 1]]); --at) order[at] = order[at - 1];
    order[at] = i;
  }
  for (std::int64_t i = 0; i < held; ++i) chosen[order[i]] = 1;
}

// Buffers of one token.
struct RouterRow {
  std::vector<float> score, choice, group;
  std::vector<std::int64_t> order, counted;
  std::vector<std::uint8_t> group_chosen;

  explicit RouterRow(const Router& r)
      : score(static_cast<std::size_t>(r.experts)),
        choice(static_cast<std::size_t>(r.experts)),
        group(static_cast<std::size_t>(r.groups)),
        order(static_cast<std::size_t>(std::max(r.topk, r.groups))),
        group_chosen(static_cast<std::size_t>(r.groups)) {}

  // The experts whose probabilities count, in ascending order: the marked ones, or all.
  const std::vector<std::int64_t>& counted_experts(const std::uint8_t* mark, bool all) {
    counted.clear();
    for (std::size_t e = 0; e < score.size(); ++e) {
      if (mark[e] || all) counted.push_back(static_cast<std::int64_t>(e));
    }
    return counted;
  }
};

inline float total(const float* value, const std::vector<std::int64_t>& experts) {
  float sum = 0.0f;
  for (const std::int64_t e : experts) sum += value[e];
  return sum;
}

// The values of `experts` become their exponentials, shifted by the largest; returns the sum.
inline float exponentials(float* value, const std::vector<std::int64_t>& experts) {
  float peak = -std::numeric_limits<float>::infinity();
  for (const std::int64_t e : experts) {
    if (larger(value[e], peak)) peak = value[e];
  }
  for (const std::int64_t e : experts) value[e] = std::exp(value[e] - peak);
  return total(value, experts);
}

// Scores of all experts in fp32.
template <class T>
MSK_INLINE void router_scores(const Router& r, const T* logits, float* score) {
  if (r.score == RouterScore::sigmoid) {
    each_vector(r.experts,
                [&](std::int64_t i, auto n) { store(score + i, sigmoid(load(logits + i, n)), n); });
    return;
  }
  each_vector(r.experts, [&](std::int64_t i, auto n) { store(score + i, load(logits + i, n), n); });
  if (r.score == RouterScore::softmax_of_chosen && !r.all) return;
  constexpr float kLowest = -std::numeric_limits<float>::infinity();
  const float peak = max_lines<float>(
      r.experts, [&](std::int64_t i, auto n) { return fill_rest(load(score + i, n), kLowest, n); });
  const float sum = sum_lines<float>(r.experts, [&](std::int64_t i, auto n) {
    const vf e = exp(load(score + i, n) - peak);
    store(score + i, e, n);
    return fill_rest(e, 0.0f, n);
  });
  each_vector(r.experts, [&](std::int64_t i, auto n) { store(score + i, load(score + i, n) / sum, n); });
}

// Of each group of experts the best topk / group_topk are added up; only the experts of the group_topk best
// groups stay (DeepSeek-V3).
inline void limit_groups(const Router& r, RouterRow& row, std::uint8_t* chosen) {
  const std::int64_t size = r.experts / r.groups, best = r.topk / r.group_topk;
  for (std::int64_t g = 0; g < r.groups; ++g) {
    float* values = row.choice.data() + g * size;
    choose_largest(values, size, best, row.order.data(), chosen);
    float total = 0.0f;
    for (std::int64_t i = 0; i < size; ++i) {
      if (chosen[i]) total += values[i];
      chosen[i] = 0;
    }
    row.group[static_cast<std::size_t>(g)] = total;
  }
  std::fill(row.group_chosen.begin(), row.group_chosen.end(), std::uint8_t{0});
  choose_largest(row.group.data(), r.groups, r.group_topk, row.order.data(), row.group_chosen.data());
  for (std::int64_t g = 0; g < r.groups; ++g) {
    if (row.group_chosen[static_cast<std::size_t>(g)]) continue;
    std::fill_n(row.choice.data() + g * size, size, -std::numeric_limits<float>::infinity());
  }
}

inline Router make_router(RouterScore score, std::int64_t experts, std::int64_t topk, std::int64_t groups,
                          std::int64_t group_topk, double scale, bool all) {
  if (topk < 1 || topk > experts)
    throw std::invalid_argument("router: topk " + std::to_string(topk) + " of " + std::to_string(experts) +
                                " experts");
  if (groups > 0 && (group_topk < 1 || group_topk > groups || experts % groups || topk < group_topk ||
                     topk / group_topk > experts / groups || topk > group_topk * (experts / groups)))
    throw std::invalid_argument("router: " + std::to_string(group_topk) + " of " + std::to_string(groups) +
                                " groups do not fit topk " + std::to_string(topk) + " of " +
                                std::to_string(experts) + " experts");
  return {score, experts, topk, groups, group_topk, static_cast<float>(scale), all};
}

// probs (tokens, experts), in dtype or, with `all`, fp32; 0 where not chosen. chosen: bytes, same shape.
// bias: fp32 (experts), added to the scores for the choice only, may be absent.
inline void router_forward(RouterScore score, bool all, Ptr logits, Ptr bias, Ptr probs, Ptr chosen,
                           std::int64_t tokens, std::int64_t experts, std::int64_t topk, std::int64_t groups,
                           std::int64_t group_topk, double scale, DType dtype) {
  const Router r = make_router(score, experts, topk, groups, group_topk, scale, all);
  visit(dtype, [&](auto tag) {
    visit(all ? DType::float32 : dtype, [&](auto out_tag) {
      using T = decltype(tag);
      using Out = decltype(out_tag);
      parallel_blocks(tokens, rows_per_task(experts * 16), [&](std::int64_t begin, std::int64_t end) {
        RouterRow row(r);
        for (std::int64_t t = begin; t < end; ++t) {
          float* value = row.score.data();
          router_scores(r, as<const T>(logits) + t * experts, value);
          std::uint8_t* mark = as<std::uint8_t>(chosen) + t * experts;
          std::fill(mark, mark + experts, std::uint8_t{0});
          std::copy(value, value + experts, row.choice.data());
          if (bias) {
            for (std::int64_t e = 0; e < experts; ++e) row.choice[e] += as<const float>(bias)[e];
          }
          if (r.groups > 0) limit_groups(r, row, mark);
          choose_largest(row.choice.data(), experts, topk, row.order.data(), mark);
          const std::vector<std::int64_t>& counted = row.counted_experts(mark, all);
          const float sum = score == RouterScore::softmax_of_chosen && !all ? exponentials(value, counted)
                                                                            : total(value, counted);
          float divisor = 1.0f;
          if (score == RouterScore::softmax_of_chosen && !all) divisor = sum;
          if (score == RouterScore::sigmoid && (topk > 1 || all)) divisor = sum + kSumFloor;
          Out* out = as<Out>(probs) + t * experts;
          std::memset(out, 0, static_cast<std::size_t>(experts) * sizeof(Out));
          for (const std::int64_t e : counted) store1(out + e, value[e] / divisor * r.scale);
        }
      });
    });
  });
}

// dlogits of router_forward from dprobs (fp32); the choice has no gradient.
inline void router_backward(RouterScore score, bool all, Ptr dprobs, Ptr logits, Ptr chosen, Ptr dlogits,
                            std::int64_t tokens, std::int64_t experts, std::int64_t topk, double scale,
                            DType dtype) {
  const Router r = make_router(score, experts, topk, 0, 0, scale, all);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_blocks(tokens, rows_per_task(experts * 16), [&](std::int64_t begin, std::int64_t end) {
      RouterRow row(r);
      for (std::int64_t t = begin; t < end; ++t) {
        float* value = row.score.data();
        const T* in = as<const T>(logits) + t * experts;
        router_scores(r, in, value);
        const std::uint8_t* mark = as<const std::uint8_t>(chosen) + t * experts;
        const float* grad = as<const float>(dprobs) + t * experts;
        T* out = as<T>(dlogits) + t * experts;
        const std::vector<std::int64_t>& counted = row.counted_experts(mark, all);
        if (score == RouterScore::softmax_of_chosen && !all) {
          const float sum = exponentials(value, counted);
          for (const std::int64_t e : counted) value[e] /= sum;
        }
        // Where gradients are alike their differences cancel: double keeps what is left.
        double along = 0.0, sum = 0.0;
        for (const std::int64_t e : counted) {
          along += static_cast<double>(grad[e]) * static_cast<double>(value[e]);
          sum += static_cast<double>(value[e]);
        }
        const bool divided = score == RouterScore::sigmoid && (topk > 1 || all);
        const double divisor = divided ? sum + static_cast<double>(kSumFloor) : 1.0;
        if (score == RouterScore::softmax_of_all) {  // the others' probabilities depend on every logit
          for (std::int64_t e = 0; e < experts; ++e)
            store1(out + e, static_cast<float>(-along * static_cast<double>(value[e])) * r.scale);
        } else {
          std::memset(out, 0, static_cast<std::size_t>(experts) * sizeof(T));
        }
        for (const std::int64_t e : counted) {
          const auto g = static_cast<double>(grad[e]), v = static_cast<double>(value[e]);
          const double d = score != RouterScore::sigmoid
                               ? v * (g - along)
                               : (divided ? (g - along / divisor) / divisor : g) * v * (1.0 - v);
          store1(out + e, static_cast<float>(d) * r.scale);
        }
      }
    });
  });
}

// ---- rows by index
// ------------------------------------------------------------------------------------------

// Tokens and experts of the rows of a permutation: expert by expert, its tokens in order. With `capacity`
// each expert has that many rows: its tokens first, then others in order, whatever the map says. Returns the
// number of rows; writes at most `limit`.
inline std::int64_t moe_rows(Ptr map, Ptr token_of_row, Ptr expert_of_row, std::int64_t tokens,
                             std::int64_t experts, std::int64_t capacity, std::int64_t limit) {
  const auto* mark = as<const std::uint8_t>(map);
  auto* token = as<std::int64_t>(token_of_row);
  auto* expert = as<std::int64_t>(expert_of_row);
  std::vector<std::int64_t> next(static_cast<std::size_t>(experts) + 1);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e) next[e + 1] += mark[t * experts + e] != 0;
  }
  std::vector<std::int64_t> end(next.begin() + 1, next.end());
  for (std::int64_t e = 0; e < experts; ++e) {
    const std::int64_t begin = e ? end[e - 1] : 0;
    end[e] = begin + (capacity >= 0 ? std::min(capacity, tokens) : end[e]);
    next[e] = begin;
  }
  const auto put_row = [&](std::int64_t e, std::int64_t t) {
    const std::int64_t row = next[e];
    if (row >= end[e]) return;
    ++next[e];
    if (row >= limit) return;
    token[row] = t;
    expert[row] = e;
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t e = 0; e < experts; ++e) {
      if (mark[t * experts + e]) put_row(e, t);
    }
  }
  for (std::int64_t e = 0; capacity >= 0 && e < experts; ++e) {
    for (std::int64_t t = 0; t < tokens && next[e] < end[e]; ++t) {
      if (!mark[t * experts + e]) put_row(e, t);
    }
  }
  return experts ? end[experts - 1] : 0;
}

// y[r] = x[index[r]] * weight[r]; an index outside [0, x_rows) gives zeros. weight: fp32, may be absent.
inline void gather_rows(Ptr x, Ptr index, Ptr weight, Ptr y, std::int64_t rows, std::int64_t cols,
                        std::int64_t x_rows, DType dtype) {
  const auto* source = as<const std::int64_t>(index);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    parallel_blocks(rows, rows_per_task(2 * bytes), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        T* out = as<T>(y) + r * cols;
        if (source[r] < 0 || source[r] >= x_rows) {
          std::memset(out, 0, static_cast<std::size_t>(bytes));
          continue;
        }
        const T* in = as<const T>(x) + source[r] * cols;
        if (!weight && past_cache) {
          copy_past_cache(out, in, bytes);
          continue;
        }
        if (!weight) {
          std::memcpy(out, in, static_cast<std::size_t>(bytes));
          continue;
        }
        const float factor = as<const float>(weight)[r];
        map_lines(out, cols, past_cache,
                  [&](std::int64_t i, auto n) { return load_ahead(in + i, n) * factor; });
      }
      if (past_cache) stream_fence();
    });
  });
}

// y[t] = sum of x[r] * weight[r] over the rows r with index[r] = t, in order of r, in fp32; t in [0, y_rows).
inline void combine_rows(Ptr x, Ptr index, Ptr weight, Ptr y, std::int64_t rows, std::int64_t cols,
                         std::int64_t y_rows, DType dtype) {
  const auto* target = as<const std::int64_t>(index);
  std::vector<std::int64_t> start(static_cast<std::size_t>(y_rows) + 1),
      order(static_cast<std::size_t>(rows));
  for (std::int64_t r = 0; r < rows; ++r) {
    if (target[r] >= 0 && target[r] < y_rows) ++start[target[r] + 1];
  }
  for (std::int64_t t = 0; t < y_rows; ++t) start[t + 1] += start[t];
  std::vector<std::int64_t> next(start.begin(), start.end());
  for (std::int64_t r = 0; r < rows; ++r) {
    if (target[r] >= 0 && target[r] < y_rows) order[next[target[r]]++] = r;
  }
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    constexpr std::int64_t kWidth = 512;
    const bool past_cache = should_stream(y_rows * bytes);
    parallel_blocks(y_rows, rows_per_task(4 * bytes), [&](std::int64_t begin, std::int64_t end) {
      float sums[kWidth];
      for (std::int64_t t = begin; t < end; ++t) {
        for (std::int64_t first = 0; first < cols; first += kWidth) {
          const std::int64_t width = std::min(kWidth, cols - first);
          std::fill(sums, sums + width, 0.0f);
          for (std::int64_t k = start[t]; k < start[t + 1]; ++k) {
            const T* row = as<const T>(x) + order[k] * cols + first;
            const vf factor = splat(weight ? as<const float>(weight)[order[k]] : 1.0f);
            each_line<T>(width, [&](std::int64_t i, auto n) {
              store(sums + i, fma(load_ahead(row + i, n), factor, load(sums + i, n)), n);
            });
          }
          T* out = as<T>(y) + t * cols + first;
          map_lines(out, width, past_cache, [&](std::int64_t i, auto n) { return load(sums + i, n); });
        }
      }
      if (past_cache) stream_fence();
    });
  });
}

// dots[r] = sum over the columns of a[r] * b[index[r]], fp32; 0 for an index outside [0, b_rows).
inline void dot_rows(Ptr a, Ptr b, Ptr index, Ptr dots, std::int64_t rows, std::int64_t cols,
                     std::int64_t b_rows, DType dtype) {
  const auto* source = as<const std::int64_t>(index);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_blocks(rows, rows_per_task(2 * cols * static_cast<std::int64_t>(sizeof(T))),
                    [&](std::int64_t begin, std::int64_t end) {
                      for (std::int64_t r = begin; r < end; ++r) {
                        float dot = 0.0f;
                        if (source[r] >= 0 && source[r] < b_rows) {
                          const T* left = as<const T>(a) + r * cols;
                          const T* right = as<const T>(b) + source[r] * cols;
                          dot = sum_lines<T>(cols, [&](std::int64_t i, auto n) {
                            return load_ahead(left + i, n) * load_ahead(right + i, n);
                          });
                        }
                        as<float>(dots)[r] = dot;
                      }
                    });
  });
}
