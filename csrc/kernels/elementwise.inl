// Elementwise operations on contiguous arrays and lists of them: the building blocks behind aten's names.

template <class F>
MSK_INLINE void visit_binary(Binary op, F&& f) {
  switch (op) {
    case Binary::add:
      return f([](vf a, vf b) { return a + b; });
    case Binary::sub:
      return f([](vf a, vf b) { return a - b; });
    case Binary::mul:
      return f([](vf a, vf b) { return a * b; });
    case Binary::div:
      return f([](vf a, vf b) { return a / b; });
    case Binary::maximum:
      return f([](vf a, vf b) { return max_nan(a, b); });
    case Binary::minimum:
      return f([](vf a, vf b) { return -max_nan(-a, -b); });
  }
}

template <class F>
MSK_INLINE void visit_unary(Unary op, F&& f) {
  switch (op) {
    case Unary::copy:
      return f([](vf x) { return x; });
    case Unary::sqrt:
      return f([](vf x) { return sqrt(x); });
    case Unary::rsqrt:
      return f([](vf x) { return 1.0f / sqrt(x); });
    case Unary::exp:
      return f([](vf x) { return exp(x); });
    case Unary::tanh:
      return f([](vf x) { return tanh(x); });
    case Unary::sigmoid:
      return f([](vf x) { return sigmoid(x); });
    case Unary::neg:
      return f([](vf x) { return -x; });
    case Unary::abs:
      return f([](vf x) { return abs(x); });
    case Unary::reciprocal:
      return f([](vf x) { return 1.0f / x; });
    case Unary::square:
      return f([](vf x) { return x * x; });
    case Unary::relu:
      return f([](vf x) { return x < 0.0f ? vf{} : x; });
    case Unary::erf:
      return f([](vf x) { return erf(x); });
  }
}

// ys = op(xs), converting from dtype to out_dtype.
inline void unary(Unary op, const Pointers& xs, const Pointers& ys, const Sizes& sizes, DType dtype,
                  DType out_dtype) {
  check_list(xs, sizes, "unary", "xs");
  check_list(ys, sizes, "unary", "ys");
  const auto spans = split_lists(sizes);
  const auto sweep = [&](auto tag, auto out_tag, auto f) {
    using T = decltype(tag);
    using Out = decltype(out_tag);
    parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
      const Span span = spans[static_cast<std::size_t>(s)];
      const T* x = element<const T>(xs, span.tensor, span.begin);
      Out* y = element<Out>(ys, span.tensor, span.begin);
      const bool past_cache = should_stream(sizes[span.tensor] * static_cast<std::int64_t>(sizeof(Out))) &&
                              static_cast<const void*>(x) != static_cast<const void*>(y);
      map_lines(y, span.end - span.begin, past_cache,
                [&](std::int64_t i, auto n) { return f(load_as<Out>(ahead(x + i, n), n)); });
      if (past_cache) stream_fence();
    });
  };
  visit(dtype, [&](auto tag) {
    if (op == Unary::copy) {
      visit(out_dtype, [&](auto out_tag) { sweep(tag, out_tag, [](vf x) { return x; }); });
    } else if (out_dtype != dtype) {
      throw std::invalid_argument("unary: only a copy may convert the dtype");
    } else {
      visit_unary(op, [&](auto f) { sweep(tag, tag, f); });
    }
  });
}

// `bytes` bytes become 0.
inline void zero(Ptr target, std::int64_t bytes) {
  const bool past_cache = should_stream(bytes);
  parallel_blocks(bytes, 256 * 1024, [&](std::int64_t begin, std::int64_t end) {
    auto* out = as<char>(target) + begin;
    const std::int64_t count = end - begin;
    // A store past the cache needs an aligned register.
    const std::int64_t head = std::min<std::int64_t>(count, -reinterpret_cast<std::uintptr_t>(out) % 64);
    const std::int64_t body = (count - head) / 64 * 64;
    std::memset(out, 0, static_cast<std::size_t>(head));
    map_lines(reinterpret_cast<float*>(out + head), body / 4, past_cache, [](auto, auto) { return vf{}; });
    std::memset(out + head + body, 0, static_cast<std::size_t>(count - head - body));
    if (past_cache) stream_fence();
  });
}

// The pairs of storage types that binary operations take: equal ones, and a narrow second operand beside fp32
// (a bf16 gradient added to its fp32 accumulator).
template <class F>
MSK_INLINE void visit_pair(DType dtype, DType other_dtype, F&& f) {
  visit(dtype, [&](auto tag) {
    if (dtype == other_dtype) {
      f(tag, tag);
    } else if constexpr (std::is_same_v<decltype(tag), float>) {
      if (other_dtype == DType::bfloat16) {
        f(tag, bf16{});
      } else {
        f(tag, f16{});
      }
    } else {
      throw std::invalid_argument("binary: operands must have one dtype, or the first fp32");
    }
  });
}

// ys = op(lefts, alpha * rights); an empty list `rights` stands for the number 1: ys = op(lefts, alpha).
inline void binary(Binary op, const Pointers& lefts, const Pointers& rights, const Pointers& ys,
                   const Sizes& sizes, double alpha, DType dtype, DType right_dtype) {
  check_list(lefts, sizes, "binary", "lefts");
  check_list(ys, sizes, "binary", "ys");
  if (!rights.empty()) check_list(rights, sizes, "binary", "rights");
  const auto spans = split_lists(sizes);
  const auto scale = static_cast<float>(alpha);
  visit_pair(dtype, rights.empty() ? dtype : right_dtype, [&](auto tag, auto right_tag) {
    using T = decltype(tag);
    using R = decltype(right_tag);
    visit_binary(op, [&](auto f) {
      parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
        const Span span = spans[static_cast<std::size_t>(s)];
        const T* a = element<const T>(lefts, span.tensor, span.begin);
        const R* b = element<const R>(rights, span.tensor, span.begin);
        T* y = element<T>(ys, span.tensor, span.begin);
        const bool past_cache =
            should_stream(sizes[span.tensor] * static_cast<std::int64_t>(sizeof(T))) && a != y;
        map_lines(y, span.end - span.begin, past_cache, [&](std::int64_t i, auto n) {
          return f(load_ahead(a + i, n), b ? load_as<T>(ahead(b + i, n), n) * scale : splat(scale));
        });
        if (past_cache) stream_fence();
      });
    });
  });
}

// y = op(left, alpha * right) for `left` of (rows, cols) and `right` that repeats.
inline void binary_broadcast(Binary op, Ptr left, Ptr right, Ptr y, std::int64_t rows, std::int64_t cols,
                             Broadcast kind, double alpha, DType dtype, DType right_dtype) {
  const auto scale = static_cast<float>(alpha);
  visit_pair(dtype, right_dtype, [&](auto tag, auto right_tag) {
    using T = decltype(tag);
    using R = decltype(right_tag);
    const auto bytes = cols * static_cast<std::int64_t>(sizeof(T));
    const bool past_cache = should_stream(rows * bytes) && left != y;
    const bool per_row = kind == Broadcast::one_per_row;
    visit_binary(op, [&](auto f) {
      parallel_blocks(rows, rows_per_task(bytes), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
          const T* a = as<const T>(left) + r * cols;
          const R* b = as<const R>(right);
          T* out = as<T>(y) + r * cols;
          const vf repeated = per_row ? splat(load1(b + r) * scale) : vf{};
          map_lines(out, cols, past_cache, [&](std::int64_t i, auto n) {
            return f(load_ahead(a + i, n), per_row ? repeated : load_as<T>(b + i, n) * scale);
          });
        }
        if (past_cache) stream_fence();
      });
    });
  });
}

// ys = xs + value * (firsts * seconds), or value * (firsts / seconds) when `divide`; when `seconds` is empty,
// ys = xs + value * (firsts - xs) (lerp).
inline void ternary(bool divide, const Pointers& xs, const Pointers& firsts, const Pointers& seconds,
                    const Pointers& ys, const Sizes& sizes, double value, DType dtype) {
  check_list(xs, sizes, "ternary", "xs");
  check_list(firsts, sizes, "ternary", "firsts");
  check_list(ys, sizes, "ternary", "ys");
  if (!seconds.empty()) check_list(seconds, sizes, "ternary", "seconds");
  const auto spans = split_lists(sizes);
  const auto factor = static_cast<float>(value);
  visit(dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(static_cast<std::int64_t>(spans.size()), [&](std::int64_t s) {
      const Span span = spans[static_cast<std::size_t>(s)];
      const T* x = element<const T>(xs, span.tensor, span.begin);
      const T* b = element<const T>(firsts, span.tensor, span.begin);
      const T* c = element<const T>(seconds, span.tensor, span.begin);
      T* y = element<T>(ys, span.tensor, span.begin);
      map_lines(y, span.end - span.begin, false, [&](std::int64_t i, auto n) {
        const vf from = load_ahead(x + i, n);
        const vf with = load_ahead(b + i, n);
        const vf term = !c ? with - from : divide ? with / load(c + i, n) : with * load(c + i, n);
        return fma(splat(factor), term, from);
      });
    });
  });
}
