// Activations with bias, plain and gated, forward and backward. An activation gives its value and its value
// with derivative for a vector.
#include "kernels/column_parts.inl"

struct Slope {
  vf value, slope;
};

// The logistic function of z from e = exp(-z), and its complement without the cancellation of 1 - value.
struct Logistic {
  vf value, complement;
};
MSK_INLINE Logistic logistic(vf minus_z) {
  const vf e = exp(minus_z);
  const vf value = reciprocal(1.0f + e);
  // The bound turns inf * 0 into the 0 * 1 it stands for.
  return {value, at_most(e, splat(1e38f)) * value};
}

// x * sigmoid(2u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form of GELU without its cancellation.
struct GeluTanh {
  static constexpr float kTwoRoot = 1.5957691216057308f;
  static constexpr float kCubic = 0.044715f;
  // Beyond 16 the sigmoid is exactly 0 or 1; the bound keeps x^3 finite.
  static MSK_INLINE vf clip(vf x) { return at_most(at_least(x, splat(-16.0f)), splat(16.0f)); }
  static MSK_INLINE vf minus_two_u(vf c) {
    return c * fma(c * c, splat(-kTwoRoot * kCubic), splat(-kTwoRoot));
  }
  static MSK_INLINE vf value(vf x) { return x * reciprocal(1.0f + exp(minus_two_u(clip(x)))); }
  static MSK_INLINE Slope slope(vf x) {
    const vf c = clip(x);
    const Logistic s = logistic(minus_two_u(c));
    const vf inner = fma(c * c, splat(3.0f * kTwoRoot * kCubic), splat(kTwoRoot));
    return {x * s.value, fma(c * s.value * s.complement, inner, s.value)};
  }
};

struct GeluErf {
  static MSK_INLINE vf value(vf x) { return x * normal_cdf(x); }
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
  // For x below -88 the exponential is infinite and the value -0, as it should be, but x = -inf gives NaN.
  static MSK_INLINE vf value(vf x) { return x * reciprocal(1.0f + exp(-kA * x)); }
  static MSK_INLINE Slope slope(vf x) {
    const Logistic s = logistic(-kA * x);
    // The bound keeps inf * 0 out of the slope; the complement is 0 there.
    const vf c = at_most(at_least(x, splat(-128.0f)), splat(128.0f));
    return {x * s.value, fma(kA * c * s.value, s.complement, s.value)};
  }
};
using QuickGelu = Swish<1702>;
using Silu = Swish<1000>;

struct SquaredRelu {
  static MSK_INLINE vf positive(vf x) { return x < 0.0f ? vf{} : x; }
  static MSK_INLINE vf value(vf x) { return positive(x) * positive(x); }
  static MSK_INLINE Slope slope(vf x) { return {value(x), 2.0f * positive(x)}; }
};

// Codes shared with mindspeed_ms.kernels.activation.ACTIVATIONS.
template <class F>
MSK_INLINE void visit_activation(int activation, F&& f) {
  switch (activation) {
    case 0:
      f(GeluTanh{});
      return;
    case 1:
      f(GeluErf{});
      return;
    case 2:
      f(QuickGelu{});
      return;
    case 3:
      f(Silu{});
      return;
    case 4:
      f(SquaredRelu{});
      return;
  }
  throw std::invalid_argument("unknown activation code " + std::to_string(activation));
}

inline std::vector<float> fp32_bias(Ptr bias, int dtype, std::int64_t cols) {
  std::vector<float> b;
  if (!bias) return b;
  b.resize(static_cast<std::size_t>(cols));
  visit(dtype, [&](auto tag) {
    const auto* p = as<const decltype(tag)>(bias);
    each_vector(cols, [&](std::int64_t i, auto n) { store(&b[i], load(p + i, n), n); });
  });
  return b;
}

// Calls f(row, first column, number of columns) for tiles of about 64 KB; without a bias the array is one
// row.
template <class F>
inline void parallel_tiles(std::int64_t rows, std::int64_t cols, std::int64_t item, F&& f) {
  const std::int64_t width = std::min<std::int64_t>(cols, 64 * 1024 / item);
  if (width <= 0) return;
  const std::int64_t across = (cols + width - 1) / width;
  const std::int64_t per_task = rows_per_task(width * item);
  parallel_blocks(rows * across, per_task, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t first = (t % across) * width;
      f(t / across, first, std::min(width, cols - first));
    }
  });
}

// y = act(x + bias); x, y: (rows, cols).
inline void activation_forward(int activation, Ptr x, Ptr bias, Ptr y, std::int64_t rows, std::int64_t cols,
                               int dtype, int bias_dtype) {
  const auto b = fp32_bias(bias, bias_dtype, cols);
  if (!bias) {
    cols *= rows;
    rows = 1;
  }
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool past_cache = should_stream(rows * cols * static_cast<std::int64_t>(sizeof(T)));
    visit_activation(activation, [&](auto act) {
      parallel_tiles(rows, cols, sizeof(T), [&](std::int64_t r, std::int64_t first, std::int64_t width) {
        const T* in = as<const T>(x) + r * cols + first;
        T* out = as<T>(y) + r * cols + first;
        const float* add = bias ? b.data() + first : nullptr;
        each_vector(width, [&](std::int64_t i, auto n) {
          vf v = load(in + i, n);
          if (add) v += load(add + i, n);
          put(out + i, act.value(v), n, past_cache);
        });
        if (past_cache) stream_fence();
      });
    });
  });
}

// dx = dy * act'(x + bias); dbias (fp32, may be absent) = sum over rows of dx.
inline void activation_backward(int activation, Ptr dy, Ptr x, Ptr bias, Ptr dx, Ptr dbias, std::int64_t rows,
                                std::int64_t cols, int dtype, int bias_dtype) {
  const auto b = fp32_bias(bias, bias_dtype, cols);
  if (!bias) {
    cols *= rows;
    rows = 1;
  }
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const bool past_cache = should_stream(rows * cols * static_cast<std::int64_t>(sizeof(T)));
    visit_activation(activation, [&](auto act) {
      const auto tile = [&](std::int64_t r, std::int64_t first, std::int64_t width, float* sums) {
        const std::int64_t at = r * cols + first;
        const float* add = bias ? b.data() + first : nullptr;
        each_vector(width, [&](std::int64_t i, auto n) {
          vf v = load(as<const T>(x) + at + i, n);
          if (add) v += load(add + i, n);
          const vf d = load(as<const T>(dy) + at + i, n) * act.slope(v).slope;
          put(as<T>(dx) + at + i, d, n, past_cache);
          if (sums) store(sums + i, load(sums + i, n) + d, n);
        });
        if (past_cache) stream_fence();
      };
      if (!dbias) {
        parallel_tiles(rows, cols, sizeof(T),
                       [&](auto r, auto first, auto width) { tile(r, first, width, nullptr); });
        return;
      }
      const RowParts split = split_rows(rows, cols, 2 * cols * static_cast<std::int64_t>(sizeof(T)));
      ColumnSums bias_sums(split, true);
      parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          tile(r, 0, cols, bias_sums.group(begin));
          bias_sums.end_row(begin, r, end);
        }
      });
      bias_sums.finish(as<float>(dbias));
    });
  });
}

// What a gated unit adds to act(gate) * linear. Both halves are clamped after the bias, the gate from above
// only; infinity switches the clamp off.
struct Gating {
  float linear_offset, clamp;
};

MSK_INLINE vf clamp_gate(vf x, const Gating& g) { return at_most(x, splat(g.clamp)); }
MSK_INLINE vf clamp_linear(vf x, const Gating& g) {
  return at_least(at_most(x, splat(g.clamp)), splat(-g.clamp));
}

// y = act(gate) * (linear + offset) * weight[row]; x: (rows, 2 * half) holds gate and linear side by side,
// y: (rows, half), weights: fp32 (rows), may be absent.
inline void glu_forward(int activation, Ptr x, Ptr bias, Ptr weights, Ptr y, std::int64_t rows,
                        std::int64_t half, double linear_offset, double clamp, int dtype, int bias_dtype) {
  const auto b = fp32_bias(bias, bias_dtype, 2 * half);
  const Gating gating{static_cast<float>(linear_offset), static_cast<float>(clamp)};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = half * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes);
    visit_activation(activation, [&](auto act) {
      parallel_tiles(rows, half, 2 * sizeof(T), [&](std::int64_t r, std::int64_t first, std::int64_t width) {
        const T* gate = as<const T>(x) + r * 2 * half + first;
        const T* linear = gate + half;
        T* out = as<T>(y) + r * half + first;
        const float* gate_bias = bias ? b.data() + first : nullptr;
        const float weight = weights ? as<const float>(weights)[r] : 1.0f;
        each_vector(width, [&](std::int64_t i, auto n) {
          vf g = load(gate + i, n);
          vf l = load(linear + i, n);
          if (gate_bias) {
            g += load(gate_bias + i, n);
            l += load(gate_bias + half + i, n);
          }
          const vf v = act.value(clamp_gate(g, gating)) * (clamp_linear(l, gating) + gating.linear_offset);
          put(out + i, v * weight, n, past_cache);
        });
        if (past_cache) stream_fence();
      });
    });
  });
}

// Gradients of glu_forward: dx (rows, 2 * half); dbias fp32 (2 * half) and dweights fp32 (rows) may be
// absent.
inline void glu_backward(int activation, Ptr dy, Ptr x, Ptr bias, Ptr weights, Ptr dx, Ptr dbias,
                         Ptr dweights, std::int64_t rows, std::int64_t half, double linear_offset,
                         double clamp, int dtype, int bias_dtype) {
  const auto b = fp32_bias(bias, bias_dtype, 2 * half);
  const Gating gating{static_cast<float>(linear_offset), static_cast<float>(clamp)};
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    const auto bytes = half * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(2 * rows * bytes);
    const RowParts split = split_rows(rows, 2 * half, 5 * bytes);
    ColumnSums bias_sums(split, dbias != 0);
    visit_activation(activation, [&](auto act) {
      parallel_blocks(rows, split.block, [&](std::int64_t begin, std::int64_t end) {
        float* sums = bias_sums.group(begin);
        for (std::int64_t r = begin; r < end; ++r) {
          const T* gate = as<const T>(x) + r * 2 * half;
          const T* grad = as<const T>(dy) + r * half;
          T* out = as<T>(dx) + r * 2 * half;
          const float weight = weights ? as<const float>(weights)[r] : 1.0f;
          vf along{};
          each_vector(half, [&](std::int64_t i, auto n) {
            vf g = load(gate + i, n);
            vf l = load(gate + half + i, n);
            if (bias) {
              g += load(b.data() + i, n);
              l += load(b.data() + half + i, n);
            }
            const Slope a = act.slope(clamp_gate(g, gating));
            const vf linear = clamp_linear(l, gating) + gating.linear_offset;
            const vf d = load(grad + i, n);
            along = fma(fill_rest(d, 0.0f, n), fill_rest(a.value * linear, 0.0f, n), along);
            const vf dw = d * weight;
            const vf dgate = g > gating.clamp ? vf{} : dw * a.slope * linear;
            const vf dlinear = abs(l) > gating.clamp ? vf{} : dw * a.value;
            put(out + i, dgate, n, past_cache);
            put(out + half + i, dlinear, n, past_cache);
            if (sums) {
              store(sums + i, load(sums + i, n) + dgate, n);
              store(sums + half + i, load(sums + half + i, n) + dlinear, n);
            }
          });
          bias_sums.end_row(begin, r, end);
          if (dweights) as<float>(dweights)[r] = hsum(along);
        }
        if (past_cache) stream_fence();
      });
    });
    bias_sums.finish(as<float>(dbias));
  });
}
