// Powers of 2 and hyperbolic tangents for attention's scores, and sums across lanes.
#pragma once

#include <utility>

#include "simd/simd.h"

namespace lg::LG_ISA {

constexpr float LOG2E = 1.44269504f;

// 2^r - 1 for |r| <= 0.5, as r times a polynomial: minimax for the relative error of 2^r (2e-9), found by reweighted
// least squares.
inline vf exp2_minus_1(vf r) {
    vf p = splat(0.0001535336193f);
    p = fma(p, r, splat(0.001339887441f));
    p = fma(p, r, splat(0.009618437358f));
    p = fma(p, r, splat(0.05550332471f));
    p = fma(p, r, splat(0.2402264791f));
    return fma(p, r, splat(0.6931472029f)) * r;
}

// 2^x for x <= 0; 1 at 0, exactly 0 from -127 on; a NaN stays.
inline vf exp2(vf x) {
    x = max(splat(-127.0f), x);
#if LG_ISA_avx512
    const vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)n, _mm512_set1_ps(-127.0f), _CMP_NEQ_UQ);
    return (vf)_mm512_maskz_scalef_ps(seen, (__m512)(exp2_minus_1(x - n) + 1.0f), (__m512)n);
#else
    const vf shifted = x + splat(12582912.0f); // the integer is in the last bits
    const vf n = shifted - splat(12582912.0f);
    return (exp2_minus_1(x - n) + 1.0f) * floats((bits(shifted) + 127) << 23);
#endif
}

// (1 - e^-2|x|) / (1 + e^-2|x|), with the sign of x; no cancellation near 0; a NaN stays.
inline vf tanh(vf x) {
    const vf away = min(splat(40.0f), magnitude(x)) * splat(-2.0f * LOG2E);
    const vf shifted = away + splat(12582912.0f);
    const vf power = floats((bits(shifted) + 127) << 23);
    const vf less = fma(power, exp2_minus_1(away - (shifted - splat(12582912.0f))), power - 1.0f); // e^-2|x| - 1
    const vf t = -less / (less + 2.0f);
    return floats((bits(t) & 0x7FFFFFFF) | (bits(x) & int32_t(0x80000000)));
}

// Folds halves of a vector onto each other, the same way in every call.
template <int N, typename V, typename F> inline float fold(V v, F f) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        return [&]<int... I>(std::integer_sequence<int, I...>) {
            return fold<N / 2>(f(__builtin_shufflevector(v, v, I...), __builtin_shufflevector(v, v, (N / 2 + I)...)), f);
        }(std::make_integer_sequence<int, N / 2>{});
    }
}

inline float sum_of_lanes(vf v) {
    return fold<LANES>(v, [](auto a, auto b) { return a + b; });
}
// NaNs are passed over, or not: which is all the same, as their weights become NaN.
inline float largest_lane(vf v) {
    return fold<LANES>(v, [](auto a, auto b) { return a > b ? a : b; });
}

} // namespace lg::LG_ISA
