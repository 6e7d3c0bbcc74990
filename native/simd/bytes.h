// Vectors of 32 bytes: the codes of quantized weights and activations, and their products.
#pragma once

#include "simd/simd.h"

namespace lg::LG_ISA {

typedef int8_t i8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

inline u8x32 load_u8(const uint8_t* p) {
    u8x32 v;
    std::memcpy(&v, p, 32);
    return v;
}

// LANES bytes -> integers. (GCC 12 makes scalar code of a __builtin_convertvector from bytes.)
inline vi widen(const uint8_t* p) {
    return load_bytes(p);
}
inline vi widen(const int8_t* p) {
#if LG_ISA_avx512
    return (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif LG_ISA_avx2
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    return widen((const uint8_t*)p) << 24 >> 24;
#endif
}

// 16 bytes, low nibbles then high nibbles: 32 codes of 4 bits in ggml's order of a block of 32.
inline u8x32 nibbles16(const uint8_t* p) {
    u8x16 q;
    std::memcpy(&q, p, 16);
    return __builtin_shufflevector(q & 15, q >> 4, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                   20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
}

// Bit i of 32 as byte i: 255 or 0.
inline u8x32 bits32(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
#if LG_ISA_avx512
    return (u8x32)_mm256_movm_epi8(word);
#else
    typedef uint32_t u32x8 __attribute__((vector_size(32)));
    const u8x32 all = (u8x32)(word - u32x8{});
    const u8x32 own = __builtin_shufflevector(all, all, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 18, 18, 18, 18, 18,
                                              18, 18, 18, 19, 19, 19, 19, 19, 19, 19, 19);
    const uint64_t bit = 0x8040201008040201;
    typedef uint64_t u64x4 __attribute__((vector_size(32)));
    return (u8x32)((own & (u8x32)(bit - u64x4{})) != 0);
#endif
}

// table[index] for each byte; indices are below 16.
inline i8x32 lookup(const int8_t* table16, u8x32 index) {
#if LG_ISA_avx512 || LG_ISA_avx2
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table16));
    return (i8x32)_mm256_shuffle_epi8(t, (__m256i)index);
#else
    i8x32 v;
    for (int i = 0; i < 32; ++i) {
        v[i] = table16[index[i]];
    }
    return v;
#endif
}

// The same for a vector of LANES words.
inline vi lookup_lanes(const int8_t* table16, vi index) {
#if LG_ISA_avx512
    const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table16));
    return (vi)_mm512_shuffle_epi8(t, (__m512i)index);
#elif LG_ISA_avx2
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table16));
    return (vi)_mm256_shuffle_epi8(t, (__m256i)index);
#elif LG_ISA_neon
    return (vi)vqtbl1q_s8(vld1q_s8(table16), (uint8x16_t)index);
#else
    vi v;
    for (int i = 0; i < LANES * 4; ++i) {
        ((int8_t*)&v)[i] = table16[((const uint8_t*)&index)[i]];
    }
    return v;
#endif
}

// Each lane of w holds four consecutive codes of one row, each lane of x the same four columns of the activations: their
// products are added up in the lane. `w` may be negative or not (Signed); without Signed, AVX2 wants it to be 127 at most.
// x is never -128.
template <bool Signed> inline vi dot_lanes(vi acc, vi w, vi x) {
#if LG_ISA_avx512
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif LG_ISA_avx2
    __m256i a = (__m256i)w, b = (__m256i)x;
    if constexpr (Signed) {
        b = _mm256_sign_epi8(b, a);
        a = _mm256_abs_epi8(a);
    }
    return acc + (vi)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
#elif LG_ISA_neon
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, (int8x16_t)x);
#else
    const int8_t* a = (const int8_t*)&w;
    const int8_t* b = (const int8_t*)&x;
    for (int i = 0; i < LANES; ++i) {
        for (int k = 0; k < 4; ++k) {
            acc[i] += int32_t(a[4 * i + k]) * int32_t(b[k]);
        }
    }
    return acc;
#endif
}

// AVX-512's product takes unsigned codes: signed ones are kept 128 higher, and 128 times the activations' sum comes off.
#if LG_ISA_avx512
constexpr int32_t PRODUCT_OFFSET = 128;
#else
constexpr int32_t PRODUCT_OFFSET = 0;
#endif

} // namespace lg::LG_ISA
