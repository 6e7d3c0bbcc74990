// One block (or super-block) per SIMD lane: every lane then runs the reference's own sequence of operations, so sums
// keep their order and the bytes agree. Vectors have the instruction set's own width; the operators of GCC's vector
// extension do the rest.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(LG_ISA_avx512) || defined(LG_ISA_avx2) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#include "kernels.h"

namespace lg::LG_ISA {
namespace {

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
#elif defined(__ARM_NEON) && defined(__aarch64__)
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

// The nearest integer, halves to even: the reference's way, adding 1.5 * 2^23, which wraps past +-2^22.
constexpr float MAGIC = 12582912.0f;

inline vi nearest_int(vf v) {
    return (bits(v + MAGIC) & 0x7FFFFF) - 0x400000;
}

inline int nearest_int(float v) {
    return nearest_int(splat(v))[0];
}

// The same for |v| < 2^22, as a float.
inline vf nearest(vf v) {
#if defined(LG_ISA_avx512)
    return (vf)_mm512_roundscale_ps((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(LG_ISA_avx2)
    return (vf)_mm256_round_ps((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    return (vf)vrndnq_f32((float32x4_t)v);
#else
    return (v + MAGIC) - MAGIC;
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

template <int D, size_t... K>
inline void exchange(vf& a, vf& b, std::index_sequence<K...>) {
    const vf low = __builtin_shufflevector(a, b, ((K & D) ? int(K) - D + LANES : int(K))...);
    b = __builtin_shufflevector(a, b, ((K & D) ? int(K) + LANES : int(K) + D)...);
    a = low;
}

template <int D>
inline void transpose_stage(vf* v) {
    for (int i = 0; i < LANES; ++i) {
        if (!(i & D)) {
            exchange<D>(v[i], v[i + D], std::make_index_sequence<LANES>{});
        }
    }
    if constexpr (D > 1) {
        transpose_stage<D / 2>(v);
    }
}

// LANES rows of N floats -> out[j], whose lane i is row i's element j. N is a multiple of LANES.
template <int N>
inline void transpose(const float* const* rows, vf* out) {
    static_assert(N % LANES == 0);
    for (int j = 0; j < N; j += LANES) {
        for (int i = 0; i < LANES; ++i) {
            std::memcpy(&out[j + i], rows[i] + j, sizeof(vf));
        }
        transpose_stage<LANES / 2>(out + j);
    }
}

// Walks blocks of N weights LANES at a time; the last batch repeats its last block in the lanes left over.
// body(first block, how many, LANES pointers to blocks, as many to their columns' importance or null).
template <int N, typename Body>
inline void each_batch(const float* x, int64_t rows, int64_t cols, const float* importance, Body body) {
    const int64_t blocks = rows * cols / N, per_row = cols / N;
    for (int64_t first = 0; first < blocks; first += LANES) {
        const int count = int(blocks - first < LANES ? blocks - first : LANES);
        const float* block[LANES];
        const float* weight[LANES];
        for (int i = 0; i < LANES; ++i) {
            const int64_t b = first + (i < count ? i : count - 1);
            block[i] = x + b * N;
            weight[i] = importance ? importance + b % per_row * N : nullptr;
        }
        body(first, count, block, importance ? weight : nullptr);
    }
}

} // namespace
} // namespace lg::LG_ISA
