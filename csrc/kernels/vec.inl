// Vectors of floats for one instruction set; included by foreach_isa.h inside that set's namespace.
// GCC vector types carry the arithmetic; intrinsics appear only where GCC has no generic form.

#if MSK_AVX512
inline constexpr int kW = 16;
#elif MSK_AVX2
inline constexpr int kW = 8;
#else
inline constexpr int kW = 4;
#endif

typedef float vf __attribute__((vector_size(kW * 4)));
typedef float vf_u __attribute__((vector_size(kW * 4), aligned(4), may_alias));
typedef std::int32_t vi __attribute__((vector_size(kW * 4)));
typedef std::uint32_t vu __attribute__((vector_size(kW * 4)));
typedef std::uint16_t vh __attribute__((vector_size(kW * 2)));
typedef std::uint16_t vh_u __attribute__((vector_size(kW * 2), aligned(2), may_alias));

// How many lanes an access covers: all, or the first n (the rest reads as 0 and is not written).
struct Full {};
struct Part {
  int n;
};

// f(i, Full) for whole vectors of [0, n), then f(i, Part) for the rest.
template <class F>
MSK_INLINE void each_vector(std::int64_t n, F&& f) {
  std::int64_t i = 0;
  for (; i + kW <= n; i += kW) f(i, Full{});
  if (i < n) f(i, Part{static_cast<int>(n - i)});
}

MSK_INLINE vf splat(float x) { return vf{} + x; }
MSK_INLINE vi splat_i(std::int32_t x) { return vi{} + x; }
MSK_INLINE vi bits(vf x) { return (vi)x; }
MSK_INLINE vf from_bits(vi x) { return (vf)x; }

MSK_INLINE vf fma(vf a, vf b, vf c) {
#if MSK_AVX512
  return _mm512_fmadd_ps(a, b, c);
#elif MSK_AVX2
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

MSK_INLINE vf abs(vf x) { return from_bits(bits(x) & 0x7fffffff); }
MSK_INLINE vf copysign(vf magnitude, vf sign) {
  return from_bits((bits(magnitude) & 0x7fffffff) | (bits(sign) & static_cast<std::int32_t>(0x80000000)));
}
// A NaN in `x` stays; `bound` must not be NaN.
#if MSK_AVX512
MSK_INLINE vf at_least(vf x, vf bound) { return _mm512_maskz_max_ps(0xffff, bound, x); }
MSK_INLINE vf at_most(vf x, vf bound) { return _mm512_maskz_min_ps(0xffff, bound, x); }
#elif MSK_AVX2
MSK_INLINE vf at_least(vf x, vf bound) { return _mm256_max_ps(bound, x); }
MSK_INLINE vf at_most(vf x, vf bound) { return _mm256_min_ps(bound, x); }
#else
MSK_INLINE vf at_least(vf x, vf bound) { return x < bound ? bound : x; }
MSK_INLINE vf at_most(vf x, vf bound) { return x > bound ? bound : x; }
#endif

// 1 / d for d in [1, 1e37], within 1 ulp; NaN stays. A division of 16 lanes takes as long as 16 to 32
// products.
MSK_INLINE vf reciprocal(vf d) {
#if MSK_AVX512
  const vf r = _mm512_maskz_rcp14_ps(0xffff, d);
  return fma(fma(-d, r, splat(1.0f)), r, r);
#else
  return 1.0f / d;
#endif
}
// 1 / d for d in [1, inf], within 2^-14: enough where the result is stored in 16 bits.
MSK_INLINE vf reciprocal_rough(vf d) {
#if MSK_AVX512
  return _mm512_maskz_rcp14_ps(0xffff, d);
#else
  return 1.0f / d;
#endif
}
MSK_INLINE vf round_even(vf x) {
#if MSK_AVX512
  return _mm512_maskz_roundscale_ps(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif MSK_AVX2
  return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // Adding 1.5 * 2^23 leaves no fraction bits; valid for |x| < 2^22, which all callers guarantee.
  const vf magic = splat(12582912.0f);
  return (x + magic) - magic;
#endif
}

MSK_INLINE vf sqrt(vf x) {
#if MSK_AVX512
  return _mm512_maskz_sqrt_ps(0xffff, x);
#elif MSK_AVX2
  return _mm256_sqrt_ps(x);
#else
  vf y;
  for (int i = 0; i < kW; ++i) y[i] = std::sqrt(x[i]);
  return y;
#endif
}

// ---- loads and stores: fp32, bf16, fp16 in memory, always fp32 in registers -----------------------------

// By intrinsics: GCC 12 splits the generic conversions into quarters.
MSK_INLINE vu widen_u16(vh h) {
#if MSK_AVX512
  return (vu)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h);
#elif MSK_AVX2
  return (vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, vu);
#endif
}
MSK_INLINE vf widen_bf16(vh h) { return (vf)(widen_u16(h) << 16); }

// Which of two equally near 16-bit values a result becomes. The even one is IEEE's and torch's; the one away
// from zero is cheaper in bf16, and for values of transcendental functions, which hardly ever lie in the
// middle, as good.
enum Ties { kTiesEven, kTiesAway };

// Rounded to nearest, in the upper 16 bits; NaN becomes the quiet NaN 0x7fc0, like torch's conversion.
template <Ties kTies = kTiesEven>
MSK_INLINE vu round_bf16(vf x) {
  const vu u = (vu)x, nan = vu{} + 0x7fc00000u;
#if MSK_AVX512
  const __mmask16 number = _mm512_cmp_ps_mask(x, x, _CMP_ORD_Q);
  if constexpr (kTies == kTiesAway)
    return (vu)_mm512_mask_add_epi32((__m512i)nan, number, (__m512i)u, _mm512_set1_epi32(0x8000));
  const __m512i even = _mm512_mask_add_epi32((__m512i)nan, number, (__m512i)u, _mm512_set1_epi32(0x7fff));
  const __mmask16 odd = _mm512_test_epi32_mask((__m512i)u, _mm512_set1_epi32(0x10000));
  return (vu)_mm512_mask_add_epi32(even, odd, even, _mm512_set1_epi32(1));
#else
  if constexpr (kTies == kTiesAway) return x != x ? nan : u + 0x8000u;
  return x != x ? nan : u + (((u >> 16) & 1u) + 0x7fffu);
#endif
}

MSK_INLINE vh narrow_bf16(vf x) {
  const vu half = round_bf16(x) >> 16;
#if MSK_AVX512
  return (vh)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)half);
#else
  return __builtin_convertvector(half, vh);
#endif
}

MSK_INLINE vf widen_f16(vh h) {
#if MSK_AVX512
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#elif MSK_AVX2
  return _mm256_cvtph_ps((__m128i)h);
#else
  vf y;
  for (int i = 0; i < kW; ++i)
    y[i] = static_cast<float>(std::bit_cast<Float16>(static_cast<std::uint16_t>(h[i])));
  return y;
#endif
}

MSK_INLINE vh narrow_f16(vf x) {
#if MSK_AVX512
  return (vh)_mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif MSK_AVX2
  return (vh)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  vh y;
  for (int i = 0; i < kW; ++i) y[i] = std::bit_cast<std::uint16_t>(static_cast<Float16>(x[i]));
  return y;
#endif
}

MSK_INLINE vh load_half(const void* p, Full) { return *static_cast<const vh_u*>(p); }
MSK_INLINE vh load_half(const void* p, Part part) {
#if MSK_AVX512
  return (vh)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << part.n) - 1), p);
#else
  vh y{};
  std::memcpy(&y, p, static_cast<std::size_t>(part.n) * 2);
  return y;
#endif
}
MSK_INLINE void store_half(void* p, vh y, Full) { *static_cast<vh_u*>(p) = y; }
MSK_INLINE void store_half(void* p, vh y, Part part) {
#if MSK_AVX512
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << part.n) - 1), (__m256i)y);
#else
  std::memcpy(p, &y, static_cast<std::size_t>(part.n) * 2);
#endif
}

MSK_INLINE vf load(const float* p, Full) { return *reinterpret_cast<const vf_u*>(p); }
MSK_INLINE vf load(const float* p, Part part) {
#if MSK_AVX512
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << part.n) - 1), p);
#else
  vf y{};
  std::memcpy(&y, p, static_cast<std::size_t>(part.n) * 4);
  return y;
#endif
}
MSK_INLINE void store(float* p, vf x, Full) { *reinterpret_cast<vf_u*>(p) = x; }
MSK_INLINE void store(float* p, vf x, Part part) {
#if MSK_AVX512
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << part.n) - 1), x);
#else
  std::memcpy(p, &x, static_cast<std::size_t>(part.n) * 4);
#endif
}

template <class Lanes>
MSK_INLINE vf load(const bf16* p, Lanes n) {
  return widen_bf16(load_half(p, n));
}
template <class Lanes>
MSK_INLINE void store(bf16* p, vf x, Lanes n) {
  store_half(p, narrow_bf16(x), n);
}
template <class Lanes>
MSK_INLINE vf load(const f16* p, Lanes n) {
  return widen_f16(load_half(p, n));
}
template <class Lanes>
MSK_INLINE void store(f16* p, vf x, Lanes n) {
  store_half(p, narrow_f16(x), n);
}

// kW bytes as integers. By intrinsics: GCC turns the generic conversion into one extraction per lane.
MSK_INLINE vi byte_lanes(const std::uint8_t* p) {
#if MSK_AVX512
  return (vi)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif MSK_AVX2
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  vi lanes;
  for (int i = 0; i < kW; ++i) lanes[i] = p[i];
  return lanes;
#endif
}

// A single element.
MSK_INLINE float load1(const float* p) { return *p; }
MSK_INLINE float load1(const bf16* p) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(p->bits) << 16);
}
MSK_INLINE float load1(const f16* p) { return static_cast<float>(std::bit_cast<Float16>(p->bits)); }
MSK_INLINE void store1(float* p, float x) { *p = x; }
MSK_INLINE void store1(bf16* p, float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  p->bits = x != x ? 0x7fc0 : static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
MSK_INLINE void store1(f16* p, float x) { p->bits = std::bit_cast<std::uint16_t>(static_cast<Float16>(x)); }

// ---- reductions within a vector -------------------------------------------------------------------------

// Combines the lanes by f in pairs: i and i + kHalf first.
template <int kHalf = kW / 2, class F>
MSK_INLINE float fold_lanes(vf x, F&& f) {
  vi other;
  for (int i = 0; i < kW; ++i) other[i] = i ^ kHalf;
  x = f(x, __builtin_shuffle(x, other));
  if constexpr (kHalf > 1) {
    return fold_lanes<kHalf / 2>(x, f);
  } else {
    return x[0];
  }
}

MSK_INLINE float hsum(vf x) {
  return fold_lanes(x, [](vf a, vf b) { return a + b; });
}

// Largest lane; for lanes without NaN.
MSK_INLINE float lane_max(vf x) {
  return fold_lanes(x, [](vf a, vf b) { return a > b ? a : b; });
}

// Elementwise maximum; NaN in either argument gives NaN.
MSK_INLINE vf max_nan(vf a, vf b) { return (a > b) | (a != a) ? a : b; }

// Elementwise maximum; the second argument where one is NaN.
MSK_INLINE vf max_or_second(vf a, vf b) { return a > b ? a : b; }

// f(T{}) with the storage type that `dtype` names.
template <class F>
MSK_INLINE void visit(DType dtype, F&& f) {
  switch (dtype) {
    case DType::float32:
      f(float{});
      return;
    case DType::bfloat16:
      f(bf16{});
      return;
    case DType::float16:
      f(f16{});
      return;
  }
}

// f(std::true_type / std::false_type): turns a run-time flag into a compile-time one.
template <class F>
MSK_INLINE void choose(bool flag, F&& f) {
  if (flag) {
    f(std::true_type{});
  } else {
    f(std::false_type{});
  }
}

#include "kernels/elementary.inl"
#include "kernels/lines.inl"
