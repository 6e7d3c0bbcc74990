// One block (or super-block) per SIMD lane: every lane then runs the reference's own sequence of operations, so sums
// keep their order and the bytes agree.
#pragma once

#include <utility>

#include "simd/vector.h"

namespace lg::LG_ISA {
namespace {

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
