// The engine's arithmetic on vectors: fused multiply-add, sums across lanes, exponentials, half floats.
#pragma once

#include <cmath>
#include <utility>

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

// Keeps GCC from reading v again from memory for every use: loads are as scarce as products.
inline vi in_register(vi v) {
#if defined(__x86_64__)
    asm("" : "+v"(v));
#elif defined(__aarch64__)
    asm("" : "+w"(v));
#endif
    return v;
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

// One step of sum_each: lanes without bit D are a's, lanes with it b's, each added to its partner.
template <int D, size_t... K> inline vf add_halves(vf a, vf b, std::index_sequence<K...>) {
    const vf low = __builtin_shufflevector(a, b, ((K & D) ? int(K) - D + LANES : int(K))...);
    const vf high = __builtin_shufflevector(a, b, ((K & D) ? int(K) + LANES : int(K) + D)...);
    return low + high;
}

// Lane i: sum(v[i]), in the same order; LANES vectors.
template <int D = LANES / 2> inline vf sum_each(const vf* v) {
    vf half[D];
    for (int i = 0; i < D; ++i) {
        half[i] = add_halves<D>(v[i], v[i + D], std::make_index_sequence<LANES>{});
    }
    if constexpr (D > 1) {
        return sum_each<D / 2>(half);
    } else {
        return half[0];
    }
}

// The same of integers, and the largest of them.
inline int32_t sum(vi v) {
#if LG_ISA_avx512
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t all = 0;
    for (int i = 0; i < LANES; ++i) {
        all += v[i];
    }
    return all;
#endif
}
inline int32_t largest(vi v) {
#if LG_ISA_avx512
    return _mm512_reduce_max_epi32((__m512i)v);
#else
    int32_t most = v[0];
    for (int i = 1; i < LANES; ++i) {
        most = v[i] > most ? v[i] : most;
    }
    return most;
#endif
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

} // namespace lg::LG_ISA
