// Activations with bias, plain and gated, forward and backward. An activation gives its value and its value
// with derivative for a vector.
#include "kernels/column_parts.inl"

struct Slope {
  vf value, slope;
};

// What the exponent of a Logistic<T> is multiplied by: results in 16 bits are made of powers of 2.
template <class T>
inline constexpr float kUnit = sizeof(T) == 2 ? 1.44269504088896341f : 1.0f;

// An activation x * s with a logistic s = 1 / (1 + e), and its slope. The bounds of the structs below keep e
// finite and above the denormals; an input below them counts as the bound: its value is below 1e-33
// anyway.
template <class T>
struct Logistic {
  vf e, value;
  explicit MSK_INLINE Logistic(vf minus_z) : e(power(minus_z)), value(reciprocal(1.0f + e)) {}
  static MSK_INLINE vf power(vf x) {
    if constexpr (sizeof(T) == 2) {
      return exp2_rough<T>(x, all_live());
    } else {
      return exp(x);
    }
  }
  // 1 - value without its cancellation.
  MSK_INLINE vf complement() const { return e * value; }
  // x / (1 + e), in fp32 as precise as the slow division for x below `bound`.
  MSK_INLINE vf times(vf x, float bound) const {
    if constexpr (sizeof(T) == 2) return x * reciprocal_rough(1.0f + e);
    const vf q = x * value;
    return x > bound ? q : fma(fma(-(1.0f + e), q, x), value, q);
  }
};

// x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form of GELU without its cancellation.
struct GeluTanh {
  static constexpr float kTwoRoot = 1.5957691216057308f;
  static constexpr float kCubic = 0.044715f;
  static constexpr float kBound = 9.6f;  // exp(2u) = 1e34
  template <class T>
  static MSK_INLINE Logistic<T> logistic(vf c) {  // of 2u
    constexpr float kFactor = -kTwoRoot * kUnit<T>;
    return Logistic<T>(c * fma(c * c, splat(kFactor * kCubic), splat(kFactor)));
  }
  template <class T>
  static MSK_INLINE vf value(vf x) {
    x = at_least(x, splat(-kBound));
    const Logistic<T> s = logistic<T>(at_most(x, splat(kBound)));
    return sizeof(T) == 2 ? s.times(x, kBound) : x * s.value;
  }
  template <class T>
  static MSK_INLINE Slope slope(vf x) {
    x = at_least(x, splat(-kBound));
    const vf c = at_most(x, splat(kBound));
    const Logistic<T> s = logistic<T>(c);
    const vf inner = fma(c * c, splat(3.0f * kTwoRoot * kCubic), splat(kTwoRoot));
    return {x * s.value, fma(c * s.value * s.complement(), inner, s.value)};
  }
};

struct GeluErf {
  template <class T>
  static MSK_INLINE vf value(vf x) {
    return x * normal_cdf(x);
  }
  template <class T>
  static MSK_INLINE Slope slope(vf x) {
    const vf cdf = normal_cdf(x);
    const vf c = at_most(at_least(x, splat(-16.0f)), splat(16.0f));
    return {x * cdf, fma(c, 0.3989422804014327f * exp(-0.5f * c * c), cdf)};
  }
};

// x * sigmoid(a x), a = 1.702 for the quick GELU and 1 for SiLU.
template <int kAThousandth>
struct Swish {
  static constexpr float kA = kAThousandth * 1e-3f;
  static constexpr float kBound = 80.0f / kA;
  template <class T>
  static MSK_INLINE vf value(vf x) {
    x = at_least(x, splat(-kBound));
    return Logistic<T>(-kA * kUnit<T> * at_most(x, splat(kBound))).times(x, kBound);
  }
  template <class T>
  static MSK_INLINE Slope slope(vf x) {
    x = at_least(x, splat(-kBound));
    const vf c = at_most(x, splat(kBound));
    const Logistic<T> s(-kA * kUnit<T> * c);
    return {s.times(x, kBound), fma(kA * c * s.value, s.complement(), s.value)};
  }
};
using QuickGelu = Swish<1702>;
using Silu = Swish<1000>;

struct SquaredRelu {
  static MSK_INLINE vf positive(vf x) { return x < 0.0f ? vf{} : x; }
  template <class T>
  static MSK_INLINE vf value(vf x) {
    return positive(x) * positive(x);
  }
  template <class T>
  static MSK_INLINE Slope slope(vf x) {
    return {value<T>(x), 2.0f * positive(x)};
  }
};

template <class F>
MSK_INLINE void visit_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::gelu_tanh:
      f(GeluTanh{});
      return;
    case Activation::gelu:
      f(GeluErf{});
      return;
    case Activation::quick_gelu:
      f(QuickGelu{});
      return;
    case Activation::silu:
      f(Silu{});
      return;
    case Activation::squared_relu:
      f(SquaredRelu{});
      return;
  }
}

// The bias of rows of `parts` arrays of T side by side, as scratch arrays; empty without one.
template <class T>
inline std::vector<float> fp32_bias(Ptr bias, DType dtype, std::int64_t cols, std::int64_t parts) {
  std::vector<float> b;
  if (!bias) return b;
  b.resize(static_cast<std::size_t>(cols * parts));
  visit(dtype, [&](auto tag) {
    for (std::int64_t at = 0; at < cols * parts; at += cols)
      fill_scratch<T>(b.data() + at, as<const decltype(tag)>(bias) + at, cols, 0.0f);
  });
  return b;
}

// Calls f(row, first column, number of columns) for tiles of about 64 KB; without a bias the array is one
// row. `past_cache`: f stores past the cache.
template <class F>
inline void parallel_tiles(std::int64_t rows, std::int64_t cols, std::int64_t item, bool past_cache, F&& f) {
  const std::int64_t width = std::min<std::int64_t>(cols, 64 * 1024 / item);
  if (width <= 0) return;
  const std::int64_t across = (cols + width - 1) / width;
  const std::int64_t per_task = rows_per_task(width * item);
  parallel_blocks(rows * across, per_task, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t first = (t % across) * width;
      f(t / across, first, std::min(width, cols - first));
    }
    if (past_cache) stream_fence();
  });
}

// y = act(x + bias); x, y: (rows, cols).
inline void activation_forward(Activation activation, Ptr x, Ptr bias, Ptr y, std::int64_t rows,
                               std::int64_t cols, DType dtype, DType bias_dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto b = fp32_bias<T>(bias, bias_dtype, cols, 1);
    if (!bias) {
      cols *= rows;
      rows = 1;
    }
    const bool past_cache = should_stream(rows * cols * static_cast<std::int64_t>(sizeof(T)));
    visit_activation(activation, [&](auto act) {
      choose(bias != 0, [&](auto biased) {
        parallel_tiles(rows, cols, sizeof(T), past_cache,
                       [&](std::int64_t r, std::int64_t first, std::int64_t width) {
                         const T* in = as<const T>(x) + r * cols + first;
                         const float* add = b.data() + first;
                         T* out = as<T>(y) + r * cols + first;
                         map_lines<kTiesAway>(out, width, past_cache, [&](std::int64_t i, auto n) {
                           const vf v = load_ahead(in + i, n);
                           return act.template value<T>(biased.value ? v + load(add + i, n) : v);
                         });
                       });
      });
    });
  });
}

// dx = dy * act'(x + bias); dbias (in bias_dtype, may be absent) = sum over rows of dx.
inline void activation_backward(Activation activation, Ptr dy, Ptr x, Ptr bias, Ptr dx, Ptr dbias,
                                std::int64_t rows, std::int64_t cols, DType dtype, DType bias_dtype) {
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto b = fp32_bias<T>(bias, bias_dtype, cols, 1);
    if (!bias) {
      cols *= rows;
      rows = 1;
    }
    const bool past_cache = should_stream(rows * cols * static_cast<std::int64_t>(sizeof(T)));
    visit_activation(activation, [&](auto act) {
      const auto tile = [&](auto biased, std::int64_t r, std::int64_t first, std::int64_t width,
                            float* sums) {
        const std::int64_t at = r * cols + first;
        const float* add = b.data() + first;
        map_lines<kTiesAway>(as<T>(dx) + at, width, past_cache, [&](std::int64_t i, auto n) {
          // The next row of a tile lies on other pages, which the CPU's own prefetchers do not cross.
          prefetch(as<const T>(x) + at + cols + i, n);
          prefetch(as<const T>(dy) + at + cols + i, n);
          vf v = load(as<const T>(x) + at + i, n);
          if constexpr (biased.value) v += load(add + i, n);
          const vf d = load(as<const T>(dy) + at + i, n) * act.template slope<T>(v).slope;
          if constexpr (biased.value) store(sums + i, load(sums + i, n) + d, n);
          return d;
        });
      };
      if (!bias) {
        parallel_tiles(rows, cols, sizeof(T), past_cache, [&](auto r, auto first, auto width) {
          tile(std::false_type{}, r, first, width, nullptr);
        });
        return;
      }
      const RowParts split = split_rows(rows, cols, 2 * cols * static_cast<std::int64_t>(sizeof(T)));
      ColumnSums<T> bias_sums(split, true);
      parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
        float* sums = bias_sums.start(begin);
        // Columns in tiles whose sums and biases stay in the first-level cache.
        constexpr std::int64_t kWidth = 2048;
        for (std::int64_t first = 0; first < cols; first += kWidth) {
          const std::int64_t width = std::min(kWidth, cols - first);
          for (std::int64_t r = begin; r < end; ++r) {
            tile(std::true_type{}, r, first, width, sums + first);
            bias_sums.end_row(begin, r, end, first, width);
          }
        }
        if (past_cache) stream_fence();
      });
      bias_sums.finish(dbias, bias_dtype);
    });
  });
}

// What a gated unit adds to act(gate) * linear. Both halves are clamped after the bias, the gate from above
// only; infinity switches the clamp off.
struct Gating {
  float linear_offset, clamp;
  bool nothing() const { return linear_offset == 0.0f && clamp == std::numeric_limits<float>::infinity(); }
};

// What a row of a gated unit is made of. kPlain: no bias, clamp or offset, the usual SwiGLU.
template <class T, bool kPlain>
struct GatedRow {
  const T *gate, *linear;
  const float *gate_bias, *linear_bias;  // null without a bias
  Gating gating;

  struct Parts {
    vf gate, linear;  // before the clamp
  };
  template <class Lanes>
  MSK_INLINE Parts at(std::int64_t i, Lanes n) const {
    Parts parts{load_ahead(gate + i, n), load_ahead(linear + i, n)};
    if (!kPlain && gate_bias) {
      parts.gate += load(gate_bias + i, n);
      parts.linear += load(linear_bias + i, n);
    }
    return parts;
  }
  MSK_INLINE vf clamped_gate(vf x) const {
    if constexpr (kPlain) return x;
    return at_most(x, splat(gating.clamp));
  }
  MSK_INLINE vf clamped_linear(vf x) const {
    if constexpr (kPlain) return x;
    return at_least(at_most(x, splat(gating.clamp)), splat(-gating.clamp)) + gating.linear_offset;
  }
  // A gradient, 0 where the clamp holds.
  MSK_INLINE vf gate_gradient(vf x, vf d) const {
    if constexpr (kPlain) return d;
    return x > gating.clamp ? vf{} : d;
  }
  MSK_INLINE vf linear_gradient(vf x, vf d) const {
    if constexpr (kPlain) return d;
    return abs(x) > gating.clamp ? vf{} : d;
  }
};

// y = act(gate) * (linear + offset) * weight[row]; x: (rows, 2 * half) holds gate and linear side by side,
// y: (rows, half), weights: fp32 (rows), may be absent.
inline void glu_forward(Activation activation, Ptr x, Ptr bias, Ptr weights, Ptr y, std::int64_t rows,
                        std::int64_t half, double linear_offset, double clamp, DType dtype,
                        DType bias_dtype) {
  const Gating gating{static_cast<float>(linear_offset), static_cast<float>(clamp)};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto b = fp32_bias<T>(bias, bias_dtype, half, 2);
    const auto bytes = half * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    visit_activation(activation, [&](auto act) {
      choose(!bias && gating.nothing(), [&](auto plain) {
        parallel_tiles(
            rows, half, 2 * sizeof(T), past_cache,
            [&](std::int64_t r, std::int64_t first, std::int64_t width) {
              const T* in = as<const T>(x) + r * 2 * half + first;
              const float* add = bias ? b.data() + first : nullptr;
              const GatedRow<T, plain.value> row{in, in + half, add, add ? add + half : nullptr, gating};
              T* out = as<T>(y) + r * half + first;
              const float weight = weights ? as<const float>(weights)[r] : 1.0f;
              map_lines<kTiesAway>(out, width, past_cache, [&](std::int64_t i, auto n) {
                const auto [g, l] = row.at(i, n);
                return act.template value<T>(row.clamped_gate(g)) * row.clamped_linear(l) * weight;
              });
            });
      });
    });
  });
}

// Gradients of glu_forward: dx (rows, 2 * half); dbias in bias_dtype (2 * half) and dweights fp32 (rows) may
// be absent.
inline void glu_backward(Activation activation, Ptr dy, Ptr x, Ptr bias, Ptr weights, Ptr dx, Ptr dbias,
                         Ptr dweights, std::int64_t rows, std::int64_t half, double linear_offset,
                         double clamp, DType dtype, DType bias_dtype) {
  const Gating gating{static_cast<float>(linear_offset), static_cast<float>(clamp)};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto b = fp32_bias<T>(bias, bias_dtype, half, 2);
    const auto bytes = half * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(2 * rows * bytes);
    const RowParts split = split_rows(rows, 2 * half, 5 * bytes);
    ColumnSums<T> bias_sums(split, dbias != 0);
    visit_activation(activation, [&](auto act) {
      choose(!bias && gating.nothing(), [&](auto plain) {
        parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
          float* sums = bias_sums.start(begin);
          for (std::int64_t r = begin; r < end; ++r) {
            const T* in = as<const T>(x) + r * 2 * half;
            const float* add = bias ? b.data() : nullptr;
            const GatedRow<T, plain.value> row{in, in + half, add, add ? add + half : nullptr, gating};
            const T* grad = as<const T>(dy) + r * half;
            T* out = as<T>(dx) + r * 2 * half;
            const float weight = weights ? as<const float>(weights)[r] : 1.0f;
            vf along{};
            map_lines<kTiesAway>(out, out + half, half, past_cache, [&](std::int64_t i, auto n) {
              const auto [g, l] = row.at(i, n);
              const Slope a = act.template slope<T>(row.clamped_gate(g));
              const vf linear = row.clamped_linear(l);
              vf d = load_ahead(grad + i, n);
              if (dweights) along = fma(fill_rest(d, 0.0f, n), fill_rest(a.value * linear, 0.0f, n), along);
              d *= weight;
              const vf dgate = row.gate_gradient(g, d * a.slope * linear);
              const vf dlinear = row.linear_gradient(l, d * a.value);
              if (!plain.value && sums) {
                store(sums + i, load(sums + i, n) + dgate, n);
                store(sums + half + i, load(sums + half + i, n) + dlinear, n);
              }
              return Two{dgate, dlinear};
            });
            bias_sums.end_row(begin, r, end);
            if (dweights) as<float>(dweights)[r] = hsum(along);
          }
          if (past_cache) stream_fence();
        });
      });
    });
    bias_sums.finish(dbias, bias_dtype, 2);
  });
}
