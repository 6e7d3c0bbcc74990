// The searches for a block's scale, and offset, that the K types and the weighted legacy types share: a block per lane,
// G vectors of blocks at once so that one vector's arithmetic fills the other's waiting. Element i of vector g's blocks
// is x[i * G + g].
//
// Every lane does the reference's operations in the reference's order (make_qx_quants, make_qkx2_quants,
// make_qkx3_quants, make_qp_quants, make_q3_quants of ggml-quants.c); the NumPy twins are in quants/search.py. Codes
// stay floats, which hold them exactly. A search returns, beside the scale, what its codes were computed from
// (`inverse`, and `from` where there is an offset), as codes are wanted of few blocks only.
#pragma once

#include "simd/lanes.h"

#include <array>

namespace lg::LG_ISA {
namespace {

constexpr float TINY = 1e-15f; // GROUP_MAX_EPS: a block below it counts as zero

// Clamping of whole numbers that are held as floats, LOW <= 0 < HIGH. Where there are integer instructions for it, on the
// floats' bits: those run beside the additions, the float ones instead of them. (Bits of floats above zero are ordered
// as integers are; those of floats below zero, as unsigned integers, by magnitude.)
template <int LOW, int HIGH>
inline vf clamp_whole(vf v) {
#if defined(LG_ISA_avx512)
    const __m512i high = _mm512_castps_si512(_mm512_set1_ps(HIGH)), low = _mm512_castps_si512(_mm512_set1_ps(LOW));
    const __m512i capped = _mm512_min_epi32((__m512i)v, high);
    return (vf)(LOW == 0 ? _mm512_max_epi32(capped, low) : _mm512_min_epu32(capped, low));
#elif defined(LG_ISA_avx2)
    const __m256i high = _mm256_castps_si256(_mm256_set1_ps(HIGH)), low = _mm256_castps_si256(_mm256_set1_ps(LOW));
    const __m256i capped = _mm256_min_epi32((__m256i)v, high);
    return (vf)(LOW == 0 ? _mm256_max_epi32(capped, low) : _mm256_min_epu32(capped, low));
#else
    return min(max(v, splat(float(LOW))), splat(float(HIGH)));
#endif
}

// Clamping from above alone.
template <int HIGH>
inline vf cap_whole(vf v) {
#if defined(LG_ISA_avx512) || defined(LG_ISA_avx2)
    return floats(min(bits(v), bits(splat(float(HIGH)))));
#else
    return min(v, splat(float(HIGH)));
#endif
}

// Clamping at 0 from below alone.
inline vf floor_whole(vf v) {
#if defined(LG_ISA_avx512) || defined(LG_ISA_avx2)
    return floats(max(bits(v), vi{}));
#else
    return max(v, vf{});
#endif
}

// The code of `v` between the whole numbers LOW and HIGH, as a float. EXACT also wraps as nearest_int does where v is
// out of its range.
template <bool EXACT, int LOW, int HIGH>
inline vf code_of(vf v) {
    if constexpr (EXACT) {
        const vi low_bits = bits(v + MAGIC) & 0x7FFFFF;
        const vi clamped = min(max(low_bits, splat(0x400000 + LOW)), splat(0x400000 + HIGH));
        return floats(clamped | 0x4B000000) - MAGIC;
    } else {
        return clamp_whole<LOW, HIGH>(nearest(v));
    }
}

// The weight of largest magnitude in every lane; the first one wins; never -0, and never NaN.
template <int N, int G>
inline void largest(const vf* x, vf* top) {
    for (int g = 0; g < G; ++g) {
        vf high = vf{}, low = vf{};
        for (int k = g; k < N * G; k += G) {
            high = max(x[k], high);
            low = min(x[k], low);
        }
        top[g] = high > -low ? high : low;
        const vi tied = (high == -low) & (high > 0.0f);
        if (any(tied)) {
            vi open = tied;
            for (int k = g; k < N * G; k += G) {
                const vi first = open & (magnitude(x[k]) == high);
                top[g] = first ? x[k] : top[g];
                open &= ~first;
            }
        }
    }
}

// ---- scales around zero

template <int G>
struct Symmetric {
    vf scale[G];   // 0 for a zero block
    vf inverse[G]; // the codes are half + clamp(nearest(inverse * x), -half, half - 1); 0 for a zero block
    vi zero[G];    // blocks whose codes are 0
};

// EXACT: x may hold infinities or NaN (the scales of sub-blocks whose sums overflowed).
//
// A candidate multiplies by c / -top, c = HALF - 0.9 .. HALF + 0.9, so that codes are clamped only of weights near the
// ends, top itself and its opposite. Unless EXACT, those weights are clamped instead, once for all c up to HALF and once
// for all above it: to where every such c gives the code of the end, with some hundredths to spare on either side.
template <int N, int G, int HALF, bool EXACT>
inline Symmetric<G> search_symmetric(const vf* x, const vf* w) {
    Symmetric<G> r;
    vf top[G], best[G], wx[N * G], within[EXACT ? 1 : N * G];
    largest<N, G>(x, top);
    for (int g = 0; g < G; ++g) {
        r.zero[g] = magnitude(top[g]) < TINY;
        top[g] = r.zero[g] ? splat(1.0f) : top[g]; // keeps infinities out of lanes that do not matter
        r.inverse[g] = float(-HALF) / top[g];
    }
    for (int i = 0; i < N * G; ++i) {
        wx[i] = w[i] * x[i];
    }
    // Ends of the weights, as parts of top: code -HALF begins at `first`, code HALF - 1 at -`last`.
    const auto clamp_weights = [&](float first, float last) {
        for (int g = 0; !EXACT && g < G; ++g) {
            const vf one = first * top[g], other = -last * top[g];
            const vf low = min(one, other), high = max(one, other);
            for (int k = g; k < N * G; k += G) {
                within[k] = min(max(x[k], low), high);
            }
        }
    };

    constexpr float H = float(HALF);
    static constexpr auto NUMERATORS = [] {
        std::array<float, 19> n{};
        for (int step = -9; step <= 9; ++step) {
            n[step + 9] = -(H + 0.1f * float(step));
        }
        return n;
    }();
    vf inverse[G], sum_lx[G], sum_l2[G];
    const auto sums = [&] {
        for (int g = 0; g < G; ++g) {
            sum_lx[g] = sum_l2[g] = vf{};
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                vf l;
                if constexpr (EXACT) {
                    l = code_of<true, -HALF, HALF - 1>(inverse[g] * x[k]);
                } else {
                    l = nearest(inverse[g] * within[k]);
                }
                sum_lx[g] += wx[k] * l;
                sum_l2[g] += w[k] * l * l;
            }
        }
    };

    clamp_weights(1.0f, (H - 1.0f) / (H - 0.45f)); // c times it is nearest to HALF - 1 for c = HALF - 0.9 .. HALF
    for (int g = 0; g < G; ++g) {
        inverse[g] = r.inverse[g];
    }
    sums();
    for (int g = 0; g < G; ++g) {
        r.scale[g] = sum_l2[g] != 0.0f ? sum_lx[g] / sum_l2[g] : vf{};
        best[g] = r.scale[g] * sum_lx[g];
    }
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) {
            clamp_weights(H / (H + 0.5f), (H - 1.0f) / (H + 0.5f)); // the same for c = HALF + 0.1 .. HALF + 0.9
            continue;
        }
        for (int g = 0; g < G; ++g) {
            inverse[g] = NUMERATORS[step + 9] / top[g];
        }
        sums();
        for (int g = 0; g < G; ++g) {
            const vi better = (sum_l2[g] > 0.0f) & (sum_lx[g] * sum_lx[g] > best[g] * sum_l2[g]);
            r.scale[g] = better ? sum_lx[g] / sum_l2[g] : r.scale[g];
            best[g] = better ? r.scale[g] * sum_lx[g] : best[g];
            r.inverse[g] = better ? inverse[g] : r.inverse[g];
        }
    }
    for (int g = 0; g < G; ++g) {
        r.scale[g] = r.zero[g] ? vf{} : r.scale[g];
        r.inverse[g] = r.zero[g] ? vf{} : r.inverse[g];
    }
    return r;
}

// ---- scale and offset

template <int G>
struct Affine {
    vf scale[G];   // 0 for a flat block
    vf low[G];     // the offset, zero or negative
    vf inverse[G]; // the codes are clamp(nearest(inverse * (x - from)), 0, TOP); 0 for a flat block, whose codes are 0
    vf from[G];
};

// The inverse scales to try, times the range.
struct AffineSearch {
    std::array<float, 37> numerators;
    int count;
};

// They start at top + first and go up by step.
constexpr AffineSearch affine_search(int top, float first, float step, int count) {
    AffineSearch s{{}, count};
    for (int t = 0; t < count; ++t) {
        s.numerators[size_t(t)] = first + step * float(t) + float(top);
    }
    return s;
}

// False when some lane's products may have left the range in which rounding needs no wrapping; then the result is void
// and the caller repeats with EXACT.
//
// Few candidates need their codes clamped: while the offset lies within half a step of the smallest weight no code falls
// below 0, and below TOP + 1/2 for the inverse scale times the range none rises above TOP.
template <int N, int G, int TOP, bool ABSOLUTE, bool EXACT>
inline bool search_affine(const vf* x, const vf* w, const AffineSearch& s, Affine<G>& r) {
    vf high[G], start[G], size[G], sum_w[G], sum_x[G], best[G], codes[N * G];
    vi doubt = vi{}, flat[G];
    bool finite[G];
    for (int g = 0; g < G; ++g) {
        vf low = x[g];
        high[g] = x[g];
        sum_w[g] = w[g];
        sum_x[g] = w[g] * x[g];
        for (int i = 1; i < N; ++i) {
            const int k = i * G + g;
            low = min(x[k], low);
            high[g] = max(x[k], high[g]);
            sum_w[g] += w[k];
            sum_x[g] += w[k] * x[k];
        }
        low = low > 0.0f ? vf{} : low;
        size[g] = max(magnitude(high[g]), magnitude(low));
        finite[g] = !any(~(size[g] < 1e37f));
        start[g] = r.low[g] = r.from[g] = low;
        flat[g] = high[g] == low;
        high[g] = flat[g] ? low + 1.0f : high[g]; // keeps infinities out of lanes that do not matter
        r.inverse[g] = float(TOP) / (high[g] - low);
        r.scale[g] = 1.0f / r.inverse[g];
    }

    // The sum of the weighted errors of the codes of vector g.
    const auto error = [&](int g, vf scale, vf low) {
        vf sum = vf{};
#pragma GCC unroll 4
        for (int k = g; k < N * G; k += G) {
            const vf diff = scale * codes[k] + low - x[k];
            sum += w[k] * (ABSOLUTE ? magnitude(diff) : diff * diff);
        }
        return sum;
    };
    // Calls each(k, code of weight k) for the weights of vector g in order. `numerator`: inverse times the range.
    const auto each_code = [&](int g, float numerator, vf inverse, vf low, auto each) {
        const auto loop = [&](auto code) {
#pragma GCC unroll 4
            for (int k = g; k < N * G; k += G) {
                each(k, code(inverse * (x[k] - low)));
            }
        };
        const vf least = inverse * (start[g] - low); // of the products; the largest is the numerator if this is smaller
        if (EXACT || !finite[g] || any(~((least > -4e6f) & (least < 0.9f * numerator)))) {
            doubt |= ~(magnitude(inverse) * (size[g] + magnitude(low)) < 4e6f) & ~flat[g];
            loop([](vf v) { return code_of<EXACT, 0, TOP>(v); });
            return;
        }
        const bool above = numerator > float(TOP) + 0.49f, below = any(least < -0.49f);
        if (above && below) {
            loop([](vf v) { return clamp_whole<0, TOP>(nearest(v)); });
        } else if (above) {
            loop([](vf v) { return cap_whole<TOP>(nearest(v)); });
        } else if (below) {
            loop([](vf v) { return floor_whole(nearest(v)); });
        } else {
            loop([](vf v) { return nearest(v); });
        }
    };

    for (int g = 0; g < G; ++g) {
        each_code(g, float(TOP), r.inverse[g], r.low[g], [&](int k, vf l) { codes[k] = l; });
        best[g] = error(g, r.scale[g], r.low[g]);
    }

    // The vectors take turns, so that the divisions between one's two loops run beside the other's loop.
    for (int t = 0; t < s.count; ++t) {
        vf inverse[G], scale[G], low[G], det[G];
        const float numerator = s.numerators[size_t(t)];
        for (int g = 0; g < G; ++g) {
            inverse[g] = numerator / (high[g] - r.low[g]);
            vf sum_l = vf{}, sum_l2 = vf{}, sum_xl = vf{};
            each_code(g, numerator, inverse[g], r.low[g], [&](int k, vf l) {
                codes[k] = l;
                const vf wl = w[k] * l;
                sum_l += wl;
                sum_l2 += wl * l;
                sum_xl += wl * x[k];
            });
            det[g] = sum_w[g] * sum_l2 - sum_l * sum_l;
            scale[g] = (sum_w[g] * sum_xl - sum_x[g] * sum_l) / det[g];
            low[g] = (sum_l2 * sum_x[g] - sum_l * sum_xl) / det[g];
            const vi above = low[g] > 0.0f;
            if (any(above)) {
                low[g] = above ? vf{} : low[g];
                scale[g] = above ? sum_xl / sum_l2 : scale[g];
            }
        }
        for (int g = 0; g < G; ++g) {
            const vf sum = error(g, scale[g], low[g]);
            const vi better = (det[g] > 0.0f) & (sum < best[g]);
            best[g] = better ? sum : best[g];
            r.scale[g] = better ? scale[g] : r.scale[g];
            r.inverse[g] = better ? inverse[g] : r.inverse[g];
            r.from[g] = better ? r.low[g] : r.from[g];
            r.low[g] = better ? low[g] : r.low[g];
        }
    }
    for (int g = 0; g < G; ++g) {
        r.scale[g] = flat[g] ? vf{} : r.scale[g];
        r.low[g] = flat[g] ? start[g] : r.low[g];
        r.inverse[g] = flat[g] ? vf{} : r.inverse[g];
    }
    return !any(doubt);
}

// ---- scales of a super-block against its own: values that are not negative

// Codes are kept in a byte, as the reference's are: a negative one wraps. Returns the scale; codes 0 .. 255.
template <int N>
inline vf search_positive(const vf* x, const vf* w, int top, vi* codes) {
    vf high = vf{};
    for (int i = 0; i < N; ++i) {
        high = max(high, x[i]);
    }
    const vi zero = high < TINY;
    const auto error = [&](vf inverse, vf scale, auto code) {
        vf sum = vf{};
        for (int i = 0; i < N; ++i) {
            const vf diff = x[i] - scale * to_float(code(nearest_int(inverse * x[i])));
            sum += w[i] * diff * diff;
        }
        return sum;
    };
    const auto capped = [&](vi l) { return min(l, splat(top)); };

    vf inverse = float(top) / high;
    vf best = error(inverse, 1.0f / inverse, [](vi l) { return l & 255; });
    for (int step = -4; step <= 4; ++step) {
        if (step == 0) {
            continue;
        }
        const vf tried = (0.1f * float(step) + float(top)) / high;
        const vf sum = error(tried, 1.0f / tried, capped);
        const vi better = sum < best;
        best = better ? sum : best;
        inverse = better ? tried : inverse;
    }
    vf sum_lx = vf{}, sum_l2 = vf{};
    for (int i = 0; i < N; ++i) {
        const vi l = capped(nearest_int(inverse * x[i]));
        codes[i] = l & 255;
        sum_lx += w[i] * x[i] * to_float(l);
        sum_l2 += w[i] * to_float(l) * to_float(l);
    }
    for (int sweep = 0; sweep < 5; ++sweep) {
        vi changed = vi{};
        for (int i = 0; i < N; ++i) {
            const vf l = to_float(codes[i]);
            const vf lx = sum_lx - w[i] * x[i] * l;
            const vf l2 = sum_l2 - w[i] * l * l;
            const vi moved = capped(nearest_int(x[i] * l2 / lx));
            const vf m = to_float(moved);
            const vf new_lx = lx + w[i] * x[i] * m;
            const vf new_l2 = l2 + w[i] * m * m;
            const vi better = (lx > 0.0f) & (l2 > 0.0f) & (moved != codes[i])
                & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2);
            codes[i] = better ? moved & 255 : codes[i];
            sum_lx = better ? new_lx : sum_lx;
            sum_l2 = better ? new_l2 : sum_l2;
            changed |= better;
        }
        if (!any(changed)) {
            break; // every lane is at its fixed point
        }
    }
    for (int i = 0; i < N; ++i) {
        codes[i] = zero ? vi{} : codes[i];
    }
    return (sum_l2 > 0.0f) & ~zero ? sum_lx / sum_l2 : vf{};
}

// ---- scales around zero by coordinate sweeps; a weight's weight is its square

// Where the sweeps start: the codes -HALF .. HALF - 1 nearest for the largest weight, and their sums.
template <int N, int G, int HALF>
struct Sweeps {
    vf w[N * G], wx[N * G], code[N * G];
    vf sum_lx[G], sum_l2[G];
    vi zero[G];

    explicit Sweeps(const vf* x) {
        vf top[G];
        largest<N, G>(x, top);
        for (int g = 0; g < G; ++g) {
            zero[g] = magnitude(top[g]) < TINY;
            top[g] = float(-HALF) / (zero[g] ? splat(1.0f) : top[g]);
            sum_lx[g] = sum_l2[g] = vf{};
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                w[k] = x[k] * x[k];
                wx[k] = w[k] * x[k];
                code[k] = code_of<false, -HALF, HALF - 1>(top[g] * x[k]);
                sum_lx[g] += wx[k] * code[k];
                sum_l2[g] += w[k] * code[k] * code[k];
            }
        }
    }

    vf scale(int g) const { return (sum_l2[g] > 0.0f) & ~zero[g] ? sum_lx[g] / sum_l2[g] : vf{}; }

    // Weight k's best code with all others as they are; its sums without it.
    vf best(const vf* x, int k, int g, vf& lx, vf& l2) const {
        lx = sum_lx[g] - wx[k] * code[k];
        l2 = sum_l2[g] - w[k] * code[k] * code[k];
        return code_of<true, -HALF, HALF - 1>(x[k] * l2 / lx);
    }
};

// Up to SWEEPS of the reference's five sweeps. Where no weight wants another code afterwards, what comes out is what all
// five would give: scales (0 for a zero block), and codes -HALF .. HALF - 1 in code[i * G + g], -HALF throughout for a
// zero block (the reference stores code 0 there, which stands for -HALF). `moving` says in which lanes some weight still
// does; in none after five. Of random weights, one block in five moves at all and one in twenty moves again; and with no
// sweep nothing waits for the weight before. So a caller sweeps the few that go on together.
template <int N, int G, int HALF, int SWEEPS>
inline void search_sweeps(const vf* x, vf* scale, vi* moving, vf* code = nullptr) {
    Sweeps<N, G, HALF> s(x);
    for (int sweep = 0; sweep < SWEEPS; ++sweep) {
        vi changed = vi{};
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                vf lx, l2;
                const vf best = s.best(x, k, g, lx, l2);
                const vf new_lx = lx + s.wx[k] * best;
                const vf new_l2 = l2 + s.w[k] * best * best;
                const vi better = (lx > 0.0f) & (best != s.code[k]) & (new_l2 > 0.0f)
                    & (new_lx * new_lx * s.sum_l2[g] > s.sum_lx[g] * s.sum_lx[g] * new_l2);
                s.code[k] = better ? best : s.code[k];
                s.sum_lx[g] = better ? new_lx : s.sum_lx[g];
                s.sum_l2[g] = better ? new_l2 : s.sum_l2[g];
                changed |= better;
            }
        }
        if (!any(changed)) {
            break; // every lane is at its fixed point
        }
    }
    for (int g = 0; g < G; ++g) {
        scale[g] = s.scale(g);
        moving[g] = vi{};
    }
    for (int i = 0; SWEEPS < 5 && i < N; ++i) {
        for (int g = 0; g < G; ++g) {
            const int k = i * G + g;
            vf lx, l2;
            const vf best = s.best(x, k, g, lx, l2);
            moving[g] |= (lx > 0.0f) & (best != s.code[k]) & ~s.zero[g];
        }
    }
    for (int k = 0; code && k < N * G; ++k) {
        code[k] = s.zero[k % G] ? splat(float(-HALF)) : s.code[k];
    }
}

} // namespace
} // namespace lg::LG_ISA
