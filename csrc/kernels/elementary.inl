// Elementary functions of vectors: exponentials, sigmoid, tanh, erf. Included by vec.inl.

// An underflow costs hundreds of cycles, and masked scores are full of them: the lanes of an exponential that
// vanish are left out of the computation. `Live` says which lanes remain; NaN does.
#if MSK_AVX512
using Live = __mmask16;
MSK_INLINE Live all_live() { return 0xffff; }
MSK_INLINE Live not_below(vf x, float lowest) { return _mm512_cmp_ps_mask(x, splat(lowest), _CMP_NLT_UQ); }
MSK_INLINE vf only(Live, vf x) { return x; }  // scale_2n masks
MSK_INLINE vf scale_2n(Live live, vf x, vf n) { return _mm512_maskz_scalef_ps(live, x, n); }
#else
using Live = vi;
MSK_INLINE Live all_live() { return ~vi{}; }
MSK_INLINE Live not_below(vf x, float lowest) { return ~(x < lowest); }
MSK_INLINE vf only(Live live, vf x) { return live ? x : vf{}; }
// x * 2^n in two factors, so that denormal results round once; 0 in lanes that vanish.
MSK_INLINE vf scale_2n(Live live, vf x, vf n) {
  const vi whole = __builtin_convertvector(n, vi);
  const vi half = whole >> 1;
  return only(live, x * from_bits((half + 127) << 23) * from_bits((whole - half + 127) << 23));
}
#endif

// exp(x); about 1 ulp, overflow to inf, gradual underflow, NaN kept. Cody-Waite reduction to |r| <= ln2/2 and
// a minimax polynomial of degree 6 (relative error 2^-28).
MSK_INLINE vf exp(vf x) {
  const Live live = not_below(x, -104.0f);
  x = at_most(only(live, x), splat(89.0f));
  const vf n = round_even(x * 1.44269504088896341f);
  vf r = fma(n, splat(-0.693145751953125f), x);
  r = fma(n, splat(-1.42860682030941723212e-6f), r);
  vf p = splat(1.40614226e-3f);
  p = fma(p, r, splat(8.37905891e-3f));
  p = fma(p, r, splat(4.16647717e-2f));
  p = fma(p, r, splat(1.66663647e-1f));
  p = fma(p, r, splat(5.00000060e-1f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return scale_2n(live, p, n);
}

// 2^(f + n) for |f| <= 1/2; relative error below 1e-7: minimax polynomial of degree 6.
MSK_INLINE vf exp2_near(Live live, vf f, vf n) {
  vf p = splat(1.5345810970757157e-4f);
  p = fma(p, f, splat(1.3399930903688073e-3f));
  p = fma(p, f, splat(9.618489071726799e-3f));
  p = fma(p, f, splat(5.550328642129898e-2f));
  p = fma(p, f, splat(2.4022646248340607e-1f));
  p = fma(p, f, splat(6.931471824645996e-1f));
  p = fma(p, f, splat(1.0f));
  return scale_2n(live, p, n);
}

// 2^x for x < 128, likewise. NaN is kept.
MSK_INLINE vf exp2(vf x) {
  const Live live = not_below(x, -150.0f);
  x = only(live, x);
  const vf n = round_even(x);
  return exp2_near(live, x - n, n);
}

// exp(x) for x <= 0 to be summed up with at least one 1: the error is 1e-7 of the value and 1e-8 of 1; 0
// below the normal numbers. NaN is kept.
MSK_INLINE vf exp_term(vf x) {
  const Live live = not_below(x, -87.0f);
  x = only(live, x);
  const vf n = round_even(x * 1.44269504088896341f);
  return exp2_near(live, fma(x, splat(1.44269504088896341f), -n), n);
}

// 2^x with a relative error of 2^-17 for a result that is stored in fp16, 2^-13.7 for one in bf16 (which
// rounds by 2^-9 itself); 0 in lanes that are not live, infinity from 128 on (outside AVX-512 2^126 from 126
// on). NaN is kept in live lanes.
template <class T>
MSK_INLINE vf exp2_rough(vf x, Live live) {
#if !MSK_AVX512
  x = at_most(at_least(x, splat(-126.0f)), splat(126.0f));
#endif
  const vf n = round_even(x);
  const vf f = x - n;
  vf p;
  if constexpr (std::is_same_v<T, bf16>) {
    p = fma(splat(5.517167e-2f), f, splat(2.4261113e-1f));
    p = fma(p, f, splat(6.9326097e-1f));
    p = fma(p, f, splat(9.9992806e-1f));
  } else {
    p = fma(splat(9.78291221e-3f), f, splat(5.59768826e-2f));
    p = fma(p, f, splat(2.40207106e-1f));
    p = fma(p, f, splat(6.93113625e-1f));
    p = fma(p, f, splat(1.0f));
  }
#if MSK_AVX512
  return _mm512_maskz_scalef_ps(live, p, n);
#else
  return only(live, p * from_bits((__builtin_convertvector(n, vi) + 127) << 23));
#endif
}

// exp(x) for x < 88, likewise; 0 below the normal numbers.
template <class T>
MSK_INLINE vf exp_rough(vf x) {
  return exp2_rough<T>(x * 1.44269504088896341f, not_below(x, -87.0f));
}

// exp(x) for x < 88, as precise as a result of type T needs it.
template <class T>
MSK_INLINE vf exp_for(vf x) {
  if constexpr (sizeof(T) == 2) {
    return exp_rough<T>(x);
  } else {
    return exp(x);
  }
}

// 1 / (1 + exp(-x)); keeps its relative precision for very negative x.
MSK_INLINE vf sigmoid(vf x) {
  const vf e = exp(-abs(x));
  const vf numerator = x < 0.0f ? e : splat(1.0f);
  return numerator * reciprocal(1.0f + e);
}

// tanh(x): odd polynomial below 0.625 (Cephes), 1 - 2 / (exp(2|x|) + 1) above.
MSK_INLINE vf tanh(vf x) {
  const vf a = abs(x);
  const vf s = x * x;
  vf p = splat(-5.70498872745e-3f);
  p = fma(p, s, splat(2.06390887954e-2f));
  p = fma(p, s, splat(-5.37397155531e-2f));
  p = fma(p, s, splat(1.33314422036e-1f));
  p = fma(p, s, splat(-3.33332819422e-1f));
  p = fma(p * s, x, x);
  const vf b = at_most(a, splat(20.0f));  // tanh is 1 in fp32 from 9 on
  const vf big = 1.0f - 2.0f * reciprocal(exp(b + b) + 1.0f);
  return a < 0.625f ? p : copysign(big, x);
}

// Exponent of the complementary error function: erfc(t) = exp(log_erfc(t)) for t > 0.92.
MSK_INLINE vf log_erfc(vf t, vf s) {
  vf r = fma(splat(-1.72853470e-5f), t, splat(3.83197126e-4f));
  const vf u = fma(splat(-3.88396438e-3f), t, splat(2.42546219e-2f));
  r = fma(r, s, u);
  r = fma(r, t, splat(-1.06777877e-1f));
  r = fma(r, t, splat(-6.34846687e-1f));
  r = fma(r, t, splat(-1.28717512e-1f));
  return fma(r, t, -t);
}

// erf on |x| <= 0.93.
MSK_INLINE vf erf_small(vf x, vf s) {
  vf r = splat(-5.96761703e-4f);
  r = fma(r, s, splat(4.99119423e-3f));
  r = fma(r, s, splat(-2.67681349e-2f));
  r = fma(r, s, splat(1.12819925e-1f));
  r = fma(r, s, splat(-3.76125336e-1f));
  r = fma(r, s, splat(1.28379166e-1f));
  return fma(r, x, x);
}

// erf(x), about 1 ulp.
MSK_INLINE vf erf(vf x) {
  const vf t = abs(x);
  // erf is 1 in fp32 from 3.92 on; the bound keeps the polynomial finite.
  const vf b = at_most(t, splat(4.2f));
  const vf big = 1.0f - exp(log_erfc(b, b * b));
  return t > 0.927734375f ? copysign(big, x) : erf_small(x, x * x);
}

// Standard normal distribution function 0.5 * (1 + erf(x / sqrt 2)), without cancellation for negative x.
MSK_INLINE vf normal_cdf(vf x) {
  const vf z = x * 0.70710678118654752f;
  const vf t = abs(z);
  const vf b = at_most(t, splat(13.5f));
  const vf tail = 0.5f * exp(log_erfc(b, b * b));
  const vf far = z < 0.0f ? tail : 1.0f - tail;
  const vf near = fma(splat(0.5f), erf_small(z, z * z), splat(0.5f));
  return t > 0.927734375f ? far : near;
}
