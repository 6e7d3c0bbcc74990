// Rounding groups of digits to points of an IQ type's grid; see src/loragraft/quants/iq_grids.py.
//
// A digit can stand for few values (three, or eight), so the error of each digit of each weight is computed once for a
// scale; a candidate's error is then DIGITS look-ups in registers and as many additions, for LANES candidates at once.
// There is no branch on whether the digits are a point: then they are their own only candidate.
#pragma once

#include <cfloat>
#include <utility>

#include "quant/iq_grids.h"
#include "simd/lanes.h"

namespace lg::LG_ISA {
namespace {

// SLOTS: the base rounded up to a power of two; SHIFT: the bits of a digit in a code.
template <int DIGITS_, int BASE_, int SLOTS_, int SHIFT_>
struct Digits {
    static constexpr int DIGITS = DIGITS_, BASE = BASE_, SLOTS = SLOTS_, SHIFT = SHIFT_;
    static constexpr int COSTS = 32, VECTORS = COSTS / LANES;
    static uint32_t digit(uint32_t code, int i) { return code >> (SHIFT * i) & (SLOTS - 1); }
};
using Ternary = Digits<8, 3, 4, 2>;
using Octal = Digits<4, 8, 8, 4>;
static_assert(Ternary::DIGITS * Ternary::SLOTS == 32 && Octal::DIGITS * Octal::SLOTS == 32);

// table[I][digit I of the code] in every lane; `table` is [DIGITS][SLOTS].
template <typename D, int I>
inline vf look_up(const vf* table, vi code) {
    const vi index = code >> (D::SHIFT * I); // the instructions look at the lowest bits
#if defined(LG_ISA_avx512)
    if constexpr (D::SLOTS == 4) {
        const __m512 four = _mm512_shuffle_f32x4((__m512)table[I / 4], (__m512)table[I / 4], I % 4 * 0x55);
        return (vf)_mm512_permutevar_ps(four, (__m512i)index);
    } else {
        return (vf)_mm512_permutexvar_ps((__m512i)index, (__m512)table[I / 2]);
    }
#elif defined(LG_ISA_avx2)
    if constexpr (D::SLOTS == 4) {
        const __m256 two = (__m256)table[I / 2];
        return (vf)_mm256_permutevar_ps(_mm256_permute2f128_ps(two, two, I % 2 * 0x11), (__m256i)index);
    } else {
        return (vf)_mm256_permutevar8x32_ps((__m256)table[I], (__m256i)index);
    }
#else
    const float* of = (const float*)table + I * D::SLOTS;
    vf v;
    for (int i = 0; i < LANES; ++i) {
        v[i] = of[index[i] & (D::SLOTS - 1)];
    }
    return v;
#endif
}

template <typename D, size_t... I>
inline vf sum_of_costs(const vf* cost, vi code, std::index_sequence<0, I...>) {
    vf sum = look_up<D, 0>(cost, code);
    ((sum += look_up<D, int(I)>(cost, code)), ...);
    return sum;
}

inline vi load_codes(const uint16_t* codes) {
#if defined(LG_ISA_avx512)
    return (vi)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)codes));
#elif defined(LG_ISA_avx2)
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)codes));
#else
    typedef uint16_t half_words __attribute__((vector_size(2 * LANES)));
    half_words v;
    std::memcpy(&v, codes, sizeof v);
    return __builtin_convertvector(v, vi);
#endif
}

// What the digits of a group stand for, repeated for every digit: [DIGITS][SLOTS].
template <typename D>
struct Values {
    alignas(64) float v[D::COSTS];
    template <typename Of>
    constexpr explicit Values(Of of) : v{} {
        for (int k = 0; k < D::COSTS; ++k) {
            const int slot = k % D::SLOTS;
            v[k] = of(slot < D::BASE ? slot : D::BASE - 1);
        }
    }
};

// A group's weights and the weights of their errors, each repeated for every value of a digit.
template <typename D>
struct Group {
    alignas(64) float x[D::COSTS];
    alignas(64) float w[D::COSTS];

    void set(const float* x_, const float* w_) {
        for (int k = 0; k < D::COSTS; ++k) {
            x[k] = x_[k / D::SLOTS];
            w[k] = w_[k / D::SLOTS];
        }
    }
};

// The candidate of least sum of w (scale * value - x)^2 in every lane, the first of equals. Where no sum is finite (the
// reference gives up there) it is the lane's first.
struct Nearest {
    vf cost;
    vi code;
};

template <typename D>
inline Nearest nearest_in_lanes(const IqGrid& grid, int32_t number, const Group<D>& group, const Values<D>& values,
                                float scale) {
    vf cost[D::VECTORS];
    for (int k = 0; k < D::VECTORS; ++k) {
        const vf difference = scale * load(values.v + k * LANES) - load(group.x + k * LANES);
        cost[k] = load(group.w + k * LANES) * difference * difference;
    }
    const uint32_t entry = grid.entry[size_t(number)];
    const uint16_t* codes = grid.candidates.data() + size_t(entry >> 8) * LANES;
    constexpr auto all = std::make_index_sequence<D::DIGITS>{};
    Nearest best;
    best.code = load_codes(codes);
    // NaN and infinity count as the largest number: it loses against anything finite, and ties with itself.
    best.cost = min(sum_of_costs<D>(cost, best.code, all), splat(FLT_MAX));
    for (uint32_t vectors = entry & 255; --vectors > 0;) {
        codes += LANES;
        const vi code = load_codes(codes);
        const vf sum = sum_of_costs<D>(cost, code, all);
        const vi closer = sum < best.cost;
        best.cost = closer ? sum : best.cost;
        best.code = closer ? code : best.code;
    }
    return best;
}

template <int ODD, typename V, size_t... K>
inline V every_second(V a, V b, std::index_sequence<K...>) {
    return __builtin_shufflevector(a, b, (2 * int(K) + ODD)...);
}

// Halves the lanes of two searches, and puts what is left side by side. Neighbouring lanes meet, and of equals the left
// one stays: the first.
inline Nearest meet(const Nearest& a, const Nearest& b) {
    constexpr auto all = std::make_index_sequence<LANES>{};
    const vf left = every_second<0>(a.cost, b.cost, all), right = every_second<1>(a.cost, b.cost, all);
    const vi left_code = every_second<0>(a.code, b.code, all), right_code = every_second<1>(a.code, b.code, all);
    const vi closer = right < left;
    return {closer ? right : left, closer ? right_code : left_code};
}

// The least of N searches from `first` on, in LANES / N lanes each: find(i) makes search i.
template <int N, typename Find>
inline Nearest meet_all(int first, const Find& find) {
    if constexpr (N == 1) {
        return find(first);
    } else {
        const Nearest left = meet_all<N / 2>(first, find);
        return meet(left, meet_all<N / 2>(first + N / 2, find));
    }
}

// The point for one number: its code.
template <typename D>
inline uint32_t snap_one(const IqGrid& grid, int32_t number, const Group<D>& group, const Values<D>& values, float scale) {
    if (const int point = grid.point[size_t(number)]; point >= 0) {
        return grid.points[size_t(point)];
    }
    Nearest found = nearest_in_lanes<D>(grid, number, group, values, scale);
    for (int n = LANES; n > 1; n /= 2) {
        found = meet(found, found);
    }
    return uint32_t(found.code[0]);
}

} // namespace
} // namespace lg::LG_ISA
