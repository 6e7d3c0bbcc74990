// The searches for a block's scale, and offset, that the K types and the weighted legacy types share: a block per lane,
// G vectors of blocks at once so that one vector's arithmetic fills the other's waiting. Element i of vector g's blocks
// is x[i * G + g].
//
// Every lane does the reference's operations in the reference's order (make_qx_quants, make_qkx2_quants,
// make_qkx3_quants, make_qp_quants, make_q3_quants of ggml-quants.c); the NumPy twins are in quants/search.py. Codes
// stay floats, which hold them exactly. A search returns, beside the scale, what its codes were computed from
// (`inverse`, and `from` where there is an offset), as codes are wanted of few blocks only.
#pragma once

#include "lanes.h"

namespace lg::LG_ISA {
namespace {

constexpr float TINY = 1e-15f; // GROUP_MAX_EPS: a block below it counts as zero

// The code of `v` between the whole numbers low and high, as a float. EXACT also wraps as nearest_int does where v is
// out of its range.
template <bool EXACT>
inline vf code_of(vf v, int low, int high) {
    if constexpr (EXACT) {
        const vi low_bits = bits(v + MAGIC) & 0x7FFFFF;
        const vi clamped = min(max(low_bits, splat(0x400000 + low)), splat(0x400000 + high));
        return floats(clamped | 0x4B000000) - MAGIC;
    } else {
        return min(max(nearest(v), splat(float(low))), splat(float(high)));
    }
}

// The weight of largest magnitude in every lane; the first one wins; never -0, and never NaN.
template <int N, int G>
inline void largest(const vf* x, vf* top) {
    for (int g = 0; g < G; ++g) {
        vf size = vf{};
        top[g] = vf{};
        for (int i = 0; i < N; ++i) {
            const vf v = x[i * G + g];
            const vi larger = magnitude(v) > size;
            size = larger ? magnitude(v) : size;
            top[g] = larger ? v : top[g];
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
template <int N, int G, int HALF, bool EXACT>
inline Symmetric<G> search_symmetric(const vf* x, const vf* w) {
    Symmetric<G> r;
    vf top[G], best[G], wx[N * G];
    largest<N, G>(x, top);
    for (int g = 0; g < G; ++g) {
        r.zero[g] = magnitude(top[g]) < TINY;
        top[g] = r.zero[g] ? splat(1.0f) : top[g]; // keeps infinities out of lanes that do not matter
        r.inverse[g] = float(-HALF) / top[g];
    }
    for (int i = 0; i < N * G; ++i) {
        wx[i] = w[i] * x[i];
    }

    vf inverse[G], sum_lx[G], sum_l2[G];
    // LOW: whether a code below -HALF can arise. It cannot while |inverse * x| < HALF + 1/2.
    const auto sums = [&]<bool LOW>() {
        for (int g = 0; g < G; ++g) {
            sum_lx[g] = sum_l2[g] = vf{};
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                const vf v = inverse[g] * x[k];
                const vf l = EXACT || LOW ? code_of<EXACT>(v, -HALF, HALF - 1) : min(nearest(v), splat(float(HALF - 1)));
                sum_lx[g] += wx[k] * l;
                sum_l2[g] += w[k] * l * l;
            }
        }
    };

    for (int g = 0; g < G; ++g) {
        inverse[g] = r.inverse[g];
    }
    sums.template operator()<false>();
    for (int g = 0; g < G; ++g) {
        r.scale[g] = sum_l2[g] != 0.0f ? sum_lx[g] / sum_l2[g] : vf{};
        best[g] = r.scale[g] * sum_lx[g];
    }
    for (int step = -9; step <= 9; ++step) {
        if (step == 0) {
            continue;
        }
        for (int g = 0; g < G; ++g) {
            inverse[g] = -(float(HALF) + 0.1f * float(step)) / top[g];
        }
        if (step < 5) {
            sums.template operator()<false>();
        } else {
            sums.template operator()<true>();
        }
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
    vf inverse[G]; // the codes are clamp(nearest(inverse * (x - from)), 0, top); 0 for a flat block, whose codes are 0
    vf from[G];
};

struct AffineSearch {
    int top;           // the highest code
    float first, step; // inverse scales start at (top + first) / range and go up by step / range
    int tries;         // one less than their number
};

// False when some lane's products may have left the range in which rounding needs no wrapping; then the result is void
// and the caller repeats with EXACT.
template <int N, int G, bool ABSOLUTE, bool EXACT>
inline bool search_affine(const vf* x, const vf* w, const AffineSearch& s, Affine<G>& r) {
    vf high[G], start[G], size[G], sum_w[G], sum_x[G], best[G], codes[N * G];
    vi doubt = vi{}, flat[G];
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
        start[g] = r.low[g] = r.from[g] = low;
        flat[g] = high[g] == low;
        r.inverse[g] = float(s.top) / (high[g] - low);
        r.scale[g] = 1.0f / r.inverse[g];
        best[g] = vf{};
    }

    const auto error = [&](const vf* scale, const vf* low, vf* sum) {
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                const vf diff = scale[g] * codes[k] + low[g] - x[k];
                sum[g] += w[k] * (ABSOLUTE ? magnitude(diff) : diff * diff);
            }
        }
    };
    const auto check_range = [&](int g, vf inverse, vf low) {
        if constexpr (!EXACT) {
            doubt |= ~(magnitude(inverse) * (size[g] + magnitude(low)) < 4e6f) & ~flat[g];
        }
    };

    for (int g = 0; g < G; ++g) {
        check_range(g, r.inverse[g], r.low[g]);
    }
    for (int i = 0; i < N; ++i) {
        for (int g = 0; g < G; ++g) {
            const int k = i * G + g;
            codes[k] = code_of<EXACT>(r.inverse[g] * (x[k] - r.low[g]), 0, s.top);
        }
    }
    error(r.scale, r.low, best);

    for (int t = 0; t <= s.tries; ++t) {
        vf inverse[G], sum_l[G], sum_l2[G], sum_xl[G];
        const float numerator = s.first + s.step * float(t) + float(s.top);
        for (int g = 0; g < G; ++g) {
            inverse[g] = numerator / (high[g] - r.low[g]);
            check_range(g, inverse[g], r.low[g]);
            sum_l[g] = sum_l2[g] = sum_xl[g] = vf{};
        }
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                const vf l = code_of<EXACT>(inverse[g] * (x[k] - r.low[g]), 0, s.top);
                codes[k] = l;
                const vf wl = w[k] * l;
                sum_l[g] += wl;
                sum_l2[g] += wl * l;
                sum_xl[g] += wl * x[k];
            }
        }
        vf det[G], scale[G], low[G], sum[G];
        for (int g = 0; g < G; ++g) {
            det[g] = sum_w[g] * sum_l2[g] - sum_l[g] * sum_l[g];
            scale[g] = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / det[g];
            low[g] = (sum_l2[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / det[g];
            const vi above = low[g] > 0.0f;
            low[g] = above ? vf{} : low[g];
            scale[g] = above ? sum_xl[g] / sum_l2[g] : scale[g];
            sum[g] = vf{};
        }
        error(scale, low, sum);
        for (int g = 0; g < G; ++g) {
            const vi better = (det[g] > 0.0f) & (sum[g] < best[g]);
            best[g] = better ? sum[g] : best[g];
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

// Returns scales (0 for a zero block); codes -HALF .. HALF - 1 as floats, in code[i * G + g], -HALF throughout for a
// zero block (the reference stores code 0 there, which stands for -HALF).
template <int N, int G, int HALF>
inline void search_sweeps(const vf* x, vf* scale, vf* code) {
    vf top[G], sum_lx[G], sum_l2[G], w[N * G], wx[N * G];
    vi zero[G];
    largest<N, G>(x, top);
    for (int g = 0; g < G; ++g) {
        zero[g] = magnitude(top[g]) < TINY;
        top[g] = zero[g] ? splat(1.0f) : top[g];
        top[g] = float(-HALF) / top[g];
        sum_lx[g] = sum_l2[g] = vf{};
    }
    for (int i = 0; i < N; ++i) {
        for (int g = 0; g < G; ++g) {
            const int k = i * G + g;
            w[k] = x[k] * x[k];
            wx[k] = w[k] * x[k];
            code[k] = code_of<false>(top[g] * x[k], -HALF, HALF - 1);
            sum_lx[g] += wx[k] * code[k];
            sum_l2[g] += w[k] * code[k] * code[k];
        }
    }
    for (int sweep = 0; sweep < 5; ++sweep) {
        vi changed = vi{};
        for (int i = 0; i < N; ++i) {
            for (int g = 0; g < G; ++g) {
                const int k = i * G + g;
                const vf l = code[k];
                const vf lx = sum_lx[g] - wx[k] * l;
                const vf l2 = sum_l2[g] - w[k] * l * l;
                const vf moved = code_of<true>(x[k] * l2 / lx, -HALF, HALF - 1);
                const vf new_lx = lx + wx[k] * moved;
                const vf new_l2 = l2 + w[k] * moved * moved;
                const vi better = (lx > 0.0f) & (moved != l) & (new_l2 > 0.0f)
                    & (new_lx * new_lx * sum_l2[g] > sum_lx[g] * sum_lx[g] * new_l2);
                code[k] = better ? moved : l;
                sum_lx[g] = better ? new_lx : sum_lx[g];
                sum_l2[g] = better ? new_l2 : sum_l2[g];
                changed |= better;
            }
        }
        if (!any(changed)) {
            break; // every lane is at its fixed point
        }
    }
    for (int g = 0; g < G; ++g) {
        scale[g] = (sum_l2[g] > 0.0f) & ~zero[g] ? sum_lx[g] / sum_l2[g] : vf{};
        for (int i = 0; i < N; ++i) {
            code[i * G + g] = zero[g] ? splat(float(-HALF)) : code[i * G + g];
        }
    }
}

} // namespace
} // namespace lg::LG_ISA
