// Rounding a group of digits to a point of an IQ type's grid; see src/loragraft/quants/iq_grids.py.
//
// A digit can stand for few values (three, or eight), so the error of each digit of each weight is computed once for a
// scale; a neighbour's error is then DIGITS look-ups and additions, for LANES neighbours at a time.
#pragma once

#include <cfloat>
#include <climits>

#include "iq_grids.h"
#include "lanes.h"

namespace lg::LG_ISA {
namespace {

// SLOTS: the base rounded up to a power of two.
template <int DIGITS_, int BASE_, int BITS_>
struct Digits {
    static constexpr int DIGITS = DIGITS_, BASE = BASE_, BITS = BITS_, SLOTS = 1 << BITS_, COSTS = DIGITS_ * SLOTS;
};
using Ternary = Digits<8, 3, 2>;
using Octal = Digits<4, 8, 3>;
static_assert(Ternary::COSTS == 32 && Octal::COSTS == 32);

// table[index modulo SLOTS], in every lane.
template <int SLOTS>
inline vf pick(const float* table, vi index) {
#if defined(LG_ISA_avx512)
    if constexpr (SLOTS == 4) {
        return (vf)_mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table)), (__m512i)index);
    } else {
        return (vf)_mm512_permutexvar_ps((__m512i)index, _mm512_broadcast_f32x8(_mm256_loadu_ps(table)));
    }
#elif defined(LG_ISA_avx2)
    if constexpr (SLOTS == 4) {
        return (vf)_mm256_permutevar_ps(_mm256_broadcast_ps((const __m128*)table), (__m256i)index);
    } else {
        return (vf)_mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)index);
    }
#else
    vf v;
    for (int i = 0; i < LANES; ++i) {
        v[i] = table[index[i] & (SLOTS - 1)];
    }
    return v;
#endif
}

inline vi load_codes(const uint16_t* codes) {
    typedef uint16_t half_words __attribute__((vector_size(2 * LANES)));
    half_words v;
    std::memcpy(&v, codes, sizeof v);
    return __builtin_convertvector(v, vi);
}

template <int D, typename V, size_t... K>
inline V rotated(V v, std::index_sequence<K...>) {
    return __builtin_shufflevector(v, v, ((int(K) + D) % LANES)...);
}

// The least of the lanes, in every lane.
template <int D = LANES / 2, typename V>
inline V least(V v) {
    v = min(v, rotated<D>(v, std::make_index_sequence<LANES>{}));
    if constexpr (D > 1) {
        return least<D / 2>(v);
    }
    return v;
}

inline vi lane_numbers() {
    vi v{};
    for (int i = 0; i < LANES; ++i) {
        v[i] = i;
    }
    return v;
}

// A group's weights and what their digits stand for, each repeated for every digit: [DIGITS][SLOTS].
template <typename D>
struct Group {
    alignas(64) float x[D::COSTS];
    alignas(64) float w[D::COSTS];

    void set(const float* x_, const float* w_) {
        for (int i = 0; i < D::DIGITS; ++i) {
            for (int slot = 0; slot < D::SLOTS; ++slot) {
                x[i * D::SLOTS + slot] = x_[i];
                w[i * D::SLOTS + slot] = w_[i];
            }
        }
    }
};

// The neighbour of least sum of w (scale * value - x)^2, the first of equals; the first of all where no sum is finite
// (the reference gives up there). `values`: [SLOTS] repeated DIGITS times.
template <typename D>
inline uint32_t nearest_point(IqGrid::List list, const Group<D>& group, const float* values, float scale) {
    alignas(64) float cost[D::COSTS];
    for (int k = 0; k < D::COSTS; k += LANES) {
        const vf difference = scale * load(values + k) - load(group.x + k);
        store(cost + k, load(group.w + k) * difference * difference);
    }
    vf best = splat(FLT_MAX);
    vi at{};
    const int n = list.chunks * IqGrid::CHUNK;
    for (int first = 0; first < n; first += LANES) {
        const vi code = load_codes(list.codes + first);
        vf sum = pick<D::SLOTS>(cost, code);
        for (int i = 1; i < D::DIGITS; ++i) {
            sum += pick<D::SLOTS>(cost + i * D::SLOTS, code >> (D::BITS * i));
        }
        const vi closer = sum < best;
        at = closer ? splat(first) : at;
        best = closer ? sum : best;
    }
    const vi where = best == least(best) ? at + lane_numbers() : splat(INT_MAX);
    return list.codes[least(where)[0]];
}

} // namespace
} // namespace lg::LG_ISA
