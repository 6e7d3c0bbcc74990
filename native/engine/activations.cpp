// Rounds activations: to 8 bits with a scale per 32 (as ggml's Q8_0, but the scale stays a float), or to NVFP4's values.
#include "kernels.h"
#include "simd/simd.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace lg::LG_ISA {

namespace {

constexpr float LARGEST = std::numeric_limits<float>::max();
constexpr float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();

// The largest magnitude of n floats, a multiple of 16; NaN where there is one. Magnitudes compare as their bits do, an infinity
// above all numbers and NaN above it.
inline float magnitude(const float* x, int n) {
    vi top{};
    for (int i = 0; i < n; i += LANES) {
        top = max(top, bits(load(x + i)) & 0x7fffffff);
    }
    return std::bit_cast<float>(largest(top));
}

// Integers of eight bits, as bytes.
inline void store_bytes(int8_t* to, vi v) {
#if LG_ISA_avx512
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)v));
#else
    for (int i = 0; i < LANES; ++i) {
        to[i] = int8_t(v[i]);
    }
#endif
}

void quantize_activations(const float* x, int64_t cols, int8_t* codes, float* d, int32_t* sum16, int32_t* sum32,
                          float* dsum16, float* dsum32) {
    for (int64_t b = 0; b < cols / 32; ++b, x += 32, codes += 32) {
        const float top = magnitude(x, 32);
        // What is no number must not become one: the scale becomes NaN, and with it every product.
        const float scale = top <= LARGEST ? top / 127.0f : NOT_A_NUMBER;
        // Of a scale that is no normal number the inverse may be infinite; such a block counts as zeros.
        const float inverse = scale >= std::numeric_limits<float>::min() ? 1.0f / scale : 0.0f;
        const vi keep = splat(top <= LARGEST ? -1 : 0);
        vi sums[2] = {}; // of the first 16 and the others
        for (int i = 0; i < 32; i += LANES) {
            // Adding 1.5 * 2^23 rounds to nearest even; the sum's low bits are the integer.
            const vf v = load(x + i) * inverse + 12582912.0f;
            const vi n = ((vi)v - 0x4b400000) & keep;
            store_bytes(codes + i, n);
            sums[i / 16] += n;
        }
        const int32_t low = sum(sums[0]), high = sum(sums[1]);
        d[b] = scale;
        sum16[2 * b] = low;
        sum16[2 * b + 1] = high;
        sum32[b] = low + high;
        dsum16[2 * b] = scale * float(low);
        dsum16[2 * b + 1] = scale * float(high);
        dsum32[b] = scale * float(low + high);
    }
}

// The nearest E4M3 value of x in [0, 448], ties to even; no NaN code.
inline float round_e4m3(float x) {
    if (x >= 448.0f) {
        return 448.0f;
    }
    const int e = x < 0x1p-6f ? -6 : std::ilogb(x);
    const float unit = std::ldexp(1.0f, e - 3);
    return std::nearbyint(x / unit) * unit;
}

// The nearest of 0, .5, 1, 1.5, 2, 3, 4, 6, ties to the even code.
inline float round_e2m1(float x) {
    const float a = std::fabs(x);
    float v;
    if (a <= 2.0f) {
        v = std::nearbyint(a * 2.0f) * 0.5f;
    } else if (a <= 4.0f) {
        v = std::nearbyint(a);
    } else {
        v = a <= 5.0f ? 4.0f : 6.0f;
    }
    return std::copysign(v, x);
}

// x as a W4A4 kernel sees it (NVIDIA Model-Optimizer's nvfp4 rule): per 16, an E4M3 scale of amax / 6 in units of
// `scale`, then E2M1 codes.
void round_nvfp4(const float* x, float* y, int64_t n, float scale) {
    for (int64_t b = 0; b < n; b += 16) {
        const int64_t m = std::min<int64_t>(16, n - b);
        float block[16] = {};
        std::copy_n(x + b, m, block);
        const float top = magnitude(block, 16);
        if (!(top <= LARGEST && scale <= LARGEST)) { // no number may come of it
            std::fill_n(y + b, m, NOT_A_NUMBER);
            continue;
        }
        const float unit = round_e4m3(top / 6.0f / scale) * scale;
        for (int64_t i = 0; i < m; ++i) {
            y[b + i] = unit > 0.0f ? round_e2m1(x[b + i] / unit) * unit : 0.0f;
        }
    }
}

} // namespace

void add_activations(KernelTable& k) {
    k.engine.quantize_activations = quantize_activations;
    k.engine.round_nvfp4 = round_nvfp4;
}

} // namespace lg::LG_ISA
