// Vectors as wide as the instruction set's registers, by GCC's and Clang's vector extension, whose operators do most of
// the work; intrinsics say only what it cannot.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Vectors wider than the registers are passed to inline functions only.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace lg::LG_ISA {

#if defined(LG_ISA_avx512)
constexpr int LANES = 16;
#elif defined(LG_ISA_avx2)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

inline vf splat(float v) { return v - vf{}; }
inline vi splat(int32_t v) { return v - vi{}; }
inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline void store(int32_t* p, vi v) { std::memcpy(p, &v, sizeof v); }
inline vi bits(vf v) { return (vi)v; }
inline vf floats(vi v) { return (vf)v; }
inline vf to_float(vi v) { return __builtin_convertvector(v, vf); }
inline vi truncate(vf v) { return __builtin_convertvector(v, vi); }
inline vf magnitude(vf v) { return floats(bits(v) & 0x7FFFFFFF); }
// C's MAX(a, b) and MIN(a, b): b where the two do not compare.
#if defined(LG_ISA_avx512)
inline vf max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
inline vf min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(LG_ISA_avx2)
inline vf max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
inline vf min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
inline vf max(vf a, vf b) { return a > b ? a : b; }
inline vf min(vf a, vf b) { return a < b ? a : b; }
#endif
inline vi max(vi a, vi b) { return a > b ? a : b; }
inline vi min(vi a, vi b) { return a < b ? a : b; }

// 0, 1, 2, ...
inline vi lane_numbers() {
    vi v{};
    for (int i = 0; i < LANES; ++i) {
        v[i] = i;
    }
    return v;
}

inline vf sqrt(vf v) {
#if defined(LG_ISA_avx512)
    return (vf)_mm512_sqrt_ps((__m512)v);
#elif defined(LG_ISA_avx2)
    return (vf)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
    return (vf)_mm_sqrt_ps((__m128)v);
#elif defined(__aarch64__)
    return (vf)vsqrtq_f32((float32x4_t)v);
#else
    for (int i = 0; i < LANES; ++i) {
        v[i] = __builtin_sqrtf(v[i]);
    }
    return v;
#endif
}

inline bool any(vi mask) {
#if defined(LG_ISA_avx512)
    return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(LG_ISA_avx2)
    return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)mask) != 0;
#else
    int32_t all = 0;
    for (int i = 0; i < LANES; ++i) {
        all |= mask[i];
    }
    return all != 0;
#endif
}

// The low byte of every lane.
inline void store_bytes(uint8_t* p, vi v) {
#if defined(LG_ISA_avx512)
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(LG_ISA_avx2)
    const __m256i fourth = _mm256_setr_epi32(0x0C080400, -1, -1, -1, 0x0C080400, -1, -1, -1);
    const __m256i bytes = _mm256_shuffle_epi8((__m256i)v, fourth);
    const __m256i both = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 0, 0, 0, 0, 0));
    _mm_storel_epi64((__m128i*)p, _mm256_castsi256_si128(both));
#else
    for (int i = 0; i < LANES; ++i) {
        p[i] = uint8_t(v[i]);
    }
#endif
}

inline vi load_bytes(const uint8_t* p) {
#if defined(LG_ISA_avx512)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(LG_ISA_avx2)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    vi v;
    for (int i = 0; i < LANES; ++i) {
        v[i] = p[i];
    }
    return v;
#endif
}

// The sign bits, lane i's in bit i.
inline uint32_t signs(vi v) {
#if defined(LG_ISA_avx512)
    return _mm512_movepi32_mask((__m512i)v);
#elif defined(LG_ISA_avx2)
    return uint32_t(_mm256_movemask_ps((__m256)v));
#elif defined(__SSE2__)
    return uint32_t(_mm_movemask_ps((__m128)v));
#else
    uint32_t all = 0;
    for (int i = 0; i < LANES; ++i) {
        all |= (uint32_t(v[i]) >> 31) << i;
    }
    return all;
#endif
}

} // namespace lg::LG_ISA
