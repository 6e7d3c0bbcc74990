// The engine's arithmetic on vectors: fused multiply-add, sums across lanes, exponentials, half floats.
#pragma once

#include <cmath>

#include "simd/half.h"
#include "simd/vector.h"

namespace lg::LG_ISA {

// ---- float vectors ----

inline vf fma(vf a, vf b, vf c) {
#if LG_ISA_avx512
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LG_ISA_avx2
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

// The sum of the lanes, by halves: the same order in every call.
inline float sum(vf v) {
    float a[LANES];
    store(a, v);
    for (int n = LANES / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) {
            a[i] += a[i + n];
        }
    }
    return a[0];
}

inline float largest(vf v) {
    float a[LANES];
    store(a, v);
    float m = a[0];
    for (int i = 1; i < LANES; ++i) {
        m = a[i] > m ? a[i] : m;
    }
    return m;
}

// e^x to about 2 units in the last place; 0 below -87.3, infinity above 88.7 is not reached by its callers (x <= 88).
inline vf exp(vf x) {
    x = x < splat(-87.3f) ? splat(-87.3f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    const vf magic = splat(12582912.0f); // adding it rounds to an integer
    const vf n = fma(x, splat(1.44269504f), magic) - magic;
    vf r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    // The minimax polynomial of Cephes' expf (Moshier).
    vf p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + 1.0f;
    const vi power = (__builtin_convertvector(n, vi) + 127) << 23;
    return p * (vf)power;
}

// ---- half floats ----

inline float half_to_float(uint16_t h) {
#if LG_ISA_avx512 || LG_ISA_avx2
    return _cvtsh_ss(h);
#else
    return float_from_half(h);
#endif
}

inline float half_at(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return half_to_float(h);
}

// LANES half floats -> floats.
inline vf load_half(const uint8_t* p) {
#if LG_ISA_avx512
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif LG_ISA_avx2
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#elif defined(__aarch64__)
    uint16x4_t h;
    std::memcpy(&h, p, 8);
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(h));
#else
    typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
    halves h;
    std::memcpy(&h, p, sizeof h);
    const vi word = __builtin_convertvector(h, vi);
    // The exponent is 112 too small, and that of infinities and NaNs smaller still than 255.
    const vf magnitude = floats((word & 0x7FFF) << 13) * 0x1p112f;
    const vi special = (word & 0x7C00) == 0x7C00;
    return floats(bits(magnitude) | (special & 0x7F800000) | ((word & 0x8000) << 16));
#endif
}

// LANES signed bytes -> floats.
inline vf load_codes(const uint8_t* p) {
#if LG_ISA_avx512
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif LG_ISA_avx2
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    typedef int8_t codes __attribute__((vector_size(LANES)));
    codes c;
    std::memcpy(&c, p, sizeof c);
    return __builtin_convertvector(__builtin_convertvector(c, vi), vf);
#endif
}

// LANES bfloat16 -> floats.
inline vf load_bfloat(const uint8_t* p) {
#if LG_ISA_avx512
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#elif LG_ISA_avx2
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
    vf v;
    for (int i = 0; i < LANES; ++i) {
        uint16_t b;
        std::memcpy(&b, p + 2 * i, 2);
        v[i] = float_from_bfloat(b);
    }
    return v;
#endif
}

// ---- panels ----

// Four rows of n 4-byte words -> out[word * stride + row]. Words are moved as floats, whatever they are.
inline void transpose4(const float* const* rows, int64_t n, float* out, int64_t stride) {
    typedef float f4 __attribute__((vector_size(16)));
    int64_t j = 0;
    for (; j + 4 <= n; j += 4) {
        f4 a, b, c, d;
        std::memcpy(&a, rows[0] + j, 16);
        std::memcpy(&b, rows[1] + j, 16);
        std::memcpy(&c, rows[2] + j, 16);
        std::memcpy(&d, rows[3] + j, 16);
        const f4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const f4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        const f4 words[4] = {
            __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5), __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7),
            __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5), __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7)};
        for (int i = 0; i < 4; ++i) {
            std::memcpy(out + (j + i) * stride, &words[i], 16);
        }
    }
    for (; j < n; ++j) {
        for (int i = 0; i < 4; ++i) {
            std::memcpy(out + j * stride + i, rows[i] + j, 4);
        }
    }
}

} // namespace lg::LG_ISA
