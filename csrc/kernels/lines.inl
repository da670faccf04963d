// Loops over rows in registers' worth of storage ("lines"). A line of a 16-bit type holds 2 kW elements and
// is taken as two vectors, its halves: for bf16 the even and the odd elements, which a shift and a mask widen
// where elements in order take a conversion and a shift, and whose results go back as one full register
// without a conversion; for fp16 the lower and the upper elements. Included by vec.inl.
//
// fp32 scratch arrays beside a row of T (weights, exponentials, column sums) hold each line's halves one
// after the other: load(float*, Half) and store(float*, Half) use that order, load_as<T> reads any array in
// order.

template <int kIndex>
struct Half {};

typedef std::uint32_t vu_u __attribute__((vector_size(kW * 4), aligned(1), may_alias));

template <int h>
MSK_INLINE vf load(const bf16* p, Half<h>) {
  const vu line = *reinterpret_cast<const vu_u*>(p);
  return (vf)(h == 0 ? line << 16 : line & 0xffff0000u);
}
template <int h>
MSK_INLINE vf load(const f16* p, Half<h>) {
  return load(p + h * kW, Full{});
}
template <int h>
MSK_INLINE vf load(const float* p, Half<h>) {
  return load(p + h * kW, Full{});
}
template <int h>
MSK_INLINE void store(float* p, vf x, Half<h>) {
  store(p + h * kW, x, Full{});
}

// Asks for what a later load of a whole line will read; once per line.
template <class Lanes>
MSK_INLINE void prefetch(const void* p, Lanes) {
  if constexpr (!std::is_same_v<Lanes, Half<1>>) __builtin_prefetch(p);
}

// For an array that is read from end to end: asks for the line that comes `kAhead` bytes after p, as the
// CPU's own prefetchers stop at pages and lose track of many arrays.
inline constexpr std::int64_t kAhead = 2048;
template <class T, class Lanes>
MSK_INLINE const T* ahead(const T* p, Lanes n) {
  prefetch(p + kAhead / static_cast<std::int64_t>(sizeof(T)), n);
  return p;
}
template <class T, class Lanes>
MSK_INLINE vf load_ahead(const T* p, Lanes n) {
  return load(ahead(p, n), n);
}

// Elements h, h + 2, ... of the two vectors in a row, and the h-th vector of even and odd elements in turn.
template <int h>
MSK_INLINE vf every_other(vf low, vf high) {
  vi index;
  for (int i = 0; i < kW; ++i) index[i] = 2 * i + h;
  return __builtin_shuffle(low, high, index);
}
template <int h>
MSK_INLINE vf in_turn(vf even, vf odd) {
  vi index;
  for (int i = 0; i < kW; ++i) index[i] = (h * kW + i) / 2 + (i % 2) * kW;
  return __builtin_shuffle(even, odd, index);
}

// An array in order, in the halves of T.
template <class T, class From, int h>
MSK_INLINE vf load_as(const From* p, Half<h> half) {
  if constexpr (std::is_same_v<T, From>) {
    return load(p, half);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return every_other<h>(load(p, Full{}), load(p + kW, Full{}));
  } else {
    return load(p + h * kW, Full{});
  }
}
template <class T, class From>
MSK_INLINE vf load_as(const From* p, Full n) {
  return load(p, n);
}
template <class T, class From>
MSK_INLINE vf load_as(const From* p, Part n) {
  return load(p, n);
}

// kW bytes of a mask as integers, not 0 where the byte is not.
template <class T, int h>
MSK_INLINE vi byte_lanes(const std::uint8_t* p, Half<h>) {
  if constexpr (std::is_same_v<T, bf16>) {
    vh pairs;
    std::memcpy(&pairs, p, sizeof(pairs));
    return (vi)widen_u16(pairs) & (h == 0 ? 0x00ff : 0xff00);
  } else {
    return byte_lanes(p + h * kW);
  }
}
template <class T>
MSK_INLINE vi byte_lanes(const std::uint8_t* p, Full) {
  return byte_lanes(p);
}
template <class T>
MSK_INLINE vi byte_lanes(const std::uint8_t* p, Part part) {
  vi lanes{};
  for (int i = 0; i < part.n; ++i) lanes[i] = p[i];
  return lanes;
}

// Lanes beyond n replaced by `fill`.
MSK_INLINE vf fill_rest(vf x, float, Full) { return x; }
template <int h>
MSK_INLINE vf fill_rest(vf x, float, Half<h>) {
  return x;
}
MSK_INLINE vf fill_rest(vf x, float fill, Part part) {
  vi index;
  for (int i = 0; i < kW; ++i) index[i] = i;
  return index < part.n ? x : splat(fill);
}

// ---- stores of lines --------------------------------------------------------------------------------------

// The halves of a line of T as they lie in memory.
template <class T, Ties kTies>
MSK_INLINE vu pack(vf first, vf second) {
  if constexpr (std::is_same_v<T, bf16>) {
    const vu even = round_bf16<kTies>(first) >> 16, odd = round_bf16<kTies>(second);
#if MSK_AVX512
    return (vu)_mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(0xffff0000u)), (__m512i)odd,
                                         (__m512i)even, 0xca);
#else
    return (odd & 0xffff0000u) | even;
#endif
  } else {
    const vh parts[2] = {narrow_f16(first), narrow_f16(second)};
    vu line;
    std::memcpy(&line, parts, sizeof(line));
    return line;
  }
}

// Writes a register, past the cache where that is wanted and the address allows it.
MSK_INLINE void put_register(void* p, vu x, bool past_cache) {
#if MSK_AVX512
  if (past_cache && (reinterpret_cast<std::uintptr_t>(p) & 63) == 0)
    return _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)x);
#elif MSK_AVX2
  if (past_cache && (reinterpret_cast<std::uintptr_t>(p) & 31) == 0)
    return _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)x);
#endif
  *static_cast<vu_u*>(p) = x;
}
// memcpy whose stores go past the cache.
MSK_INLINE void copy_past_cache(void* to, const void* from, std::int64_t bytes) {
  auto* out = static_cast<char*>(to);
  const auto* in = static_cast<const char*>(from);
  constexpr std::int64_t kRegister = kW * 4;
  std::int64_t i = 0;
  for (; i + kRegister <= bytes; i += kRegister) {
    __builtin_prefetch(in + i + kAhead);
    put_register(out + i, *reinterpret_cast<const vu_u*>(in + i), true);
  }
  std::memcpy(out + i, in + i, static_cast<std::size_t>(bytes - i));
}
// Ends a task whose stores may have gone past the cache.
MSK_INLINE void stream_fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// ---- loops ------------------------------------------------------------------------------------------------

// Elements of a line of T.
template <class T>
inline constexpr int kLine = sizeof(T) == 2 ? 2 * kW : kW;

// f(i, lanes) for the halves of whole lines of [0, n), then for the vectors of the rest.
template <class T, class F>
MSK_INLINE void each_line(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + kLine<T> <= n; i += kLine<T>) {
      f(i, Half<0>{});
      f(i, Half<1>{});
    }
  }
  each_vector(n - i, [&](std::int64_t j, auto lanes) { f(i + j, lanes); });
}

// out[i...] = f(i, lanes) over [0, n); f may read out. `past_cache`: as should_stream() judged; such a task
// ends with stream_fence().
template <Ties kTies = kTiesEven, class T, class F>
MSK_INLINE void map_lines(T* out, std::int64_t n, bool past_cache, F&& f) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + kLine<T> <= n; i += kLine<T>) {
      const vf first = f(i, Half<0>{});
      put_register(out + i, pack<T, kTies>(first, f(i, Half<1>{})), past_cache);
    }
  } else {
    for (; i + kW <= n; i += kW) put_register(out + i, (vu)f(i, Full{}), past_cache);
  }
  each_vector(n - i, [&](std::int64_t j, auto lanes) { store(out + i + j, f(i + j, lanes), lanes); });
}

struct Two {
  vf first, second;
};

// Two outputs of one pass: f returns a vector for each.
template <Ties kTies = kTiesEven, class T, class F>
MSK_INLINE void map_lines(T* out, T* other, std::int64_t n, bool past_cache, F&& f) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + kLine<T> <= n; i += kLine<T>) {
      const Two a = f(i, Half<0>{}), b = f(i, Half<1>{});
      put_register(out + i, pack<T, kTies>(a.first, b.first), past_cache);
      put_register(other + i, pack<T, kTies>(a.second, b.second), past_cache);
    }
  } else {
    for (; i + kW <= n; i += kW) {
      const Two a = f(i, Full{});
      put_register(out + i, (vu)a.first, past_cache);
      put_register(other + i, (vu)a.second, past_cache);
    }
  }
  each_vector(n - i, [&](std::int64_t j, auto lanes) {
    const Two a = f(i + j, lanes);
    store(out + i + j, a.first, lanes);
    store(other + i + j, a.second, lanes);
  });
}

// f(i, lanes, k) for four vectors k at a time, then for the rest of [0, n) with k = 0.
template <class T, class F>
MSK_INLINE void each_four(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  if constexpr (sizeof(T) == 2) {
    for (; i + 2 * kLine<T> <= n; i += 2 * kLine<T>) {
      f(i, Half<0>{}, 0);
      f(i, Half<1>{}, 1);
      f(i + kLine<T>, Half<0>{}, 2);
      f(i + kLine<T>, Half<1>{}, 3);
    }
  } else {
    for (; i + 4 * kW <= n; i += 4 * kW) {
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) f(i + k * kW, Full{}, k);
    }
  }
  each_line<T>(n - i, [&](std::int64_t j, auto lanes) { f(i + j, lanes, 0); });
}

// Sum of the vectors f(i, lanes) over [0, n), which must be 0 in lanes beyond n. Groups of 32 are summed
// first, so that the error grows with 32 + n / (32 kW) additions instead of n / kW; four sums at a time, as
// one would wait for its previous addition.
template <class T, class F>
MSK_INLINE float sum_lines(std::int64_t n, F&& f) {
  constexpr std::int64_t kGroup = 32 * kW;
  vf total{};
  for (std::int64_t first = 0; first < n; first += kGroup) {
    vf part[4] = {};
    each_four<T>(std::min(kGroup, n - first),
                 [&](std::int64_t i, auto lanes, int k) { part[k] += f(first + i, lanes); });
    total += (part[0] + part[1]) + (part[2] + part[3]);
  }
  return hsum(total);
}

// Largest lane of the vectors f(i, lanes) over [0, n), which must be low in lanes beyond n; NaN is passed
// over.
template <class T, class F>
MSK_INLINE float max_lines(std::int64_t n, F&& f) {
  vf best[4];
  for (auto& b : best) b = splat(-std::numeric_limits<float>::infinity());
  each_four<T>(n, [&](std::int64_t i, auto lanes, int k) { best[k] = max_or_second(f(i, lanes), best[k]); });
  return lane_max(max_or_second(max_or_second(best[0], best[1]), max_or_second(best[2], best[3])));
}

// `n` values in order, plus `offset`, as a scratch array beside rows of T.
template <class T, class From>
MSK_INLINE void fill_scratch(float* scratch, const From* from, std::int64_t n, float offset) {
  each_line<T>(n, [&](std::int64_t i, auto lanes) {
    store(scratch + i, load_as<T>(from + i, lanes) + offset, lanes);
  });
}

// out[i...] in order = f(i, lanes) over [0, n), the vectors of a scratch array beside rows of T.
template <class T, class Out, class F>
MSK_INLINE void put_in_order(Out* out, std::int64_t n, F&& f) {
  if constexpr (std::is_same_v<T, Out>) return map_lines(out, n, false, f);
  std::int64_t i = 0;
  if constexpr (std::is_same_v<T, bf16>) {
    for (; i + kLine<T> <= n; i += kLine<T>) {
      const vf even = f(i, Half<0>{}), odd = f(i, Half<1>{});
      store(out + i, in_turn<0>(even, odd), Full{});
      store(out + i + kW, in_turn<1>(even, odd), Full{});
    }
  }
  each_vector(n - i, [&](std::int64_t j, auto lanes) { store(out + i + j, f(i + j, lanes), lanes); });
}
