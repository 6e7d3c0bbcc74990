// NVFP4 with a per-tensor scale: the E4M3 scale of least squared error for every block of 16. The search and its order
// are those of src/loragraft/quants/nvfp4.py, which argues why no other scale can win. A lane is a block.
#include "kernels.h"
#include "simd/lanes.h"

namespace lg::LG_ISA {
namespace {

constexpr int UP = 8;
constexpr int32_t LAST = 0x7E; // the code of 448

// The values of E4M3 codes 0..126.
inline vf e4m3_values(vi code) {
    const vf normal = floats((code + (120 << 3)) << 20);
    return code < 8 ? to_float(code) * 0x1p-9f : normal;
}

// E4M3 codes of magnitudes, to nearest even; beyond 448 they saturate.
inline vi e4m3_codes(vf v) {
    v = min(v, splat(448.0f));
    const vi exponent = max((bits(v) >> 23) - 127, splat(-6));
    return nearest_int(v * floats((130 - exponent) << 23)) + 8 * (exponent + 6);
}

// Magnitudes to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6; halves to the even mantissa.
inline vf round_e2m1(vf t) {
    t = min(t, splat(6.0f));
    const vf magic = max(floats(bits(t) & 0x7F800000), splat(1.0f)) * 6291456.0f;
    return (t + magic) - magic;
}

inline vf error(const vf* y, const vf* w, vi code) {
    const vf value = e4m3_values(code);
    const vf inverse = 1.0f / value;
    vf sum{};
    for (int j = 0; j < 16; ++j) {
        const vf difference = y[j] - round_e2m1(y[j] * inverse) * value;
        sum += w ? w[j] * difference * difference : difference * difference;
    }
    return sum;
}

// The codes of the best scales. y: magnitudes in units of the per-tensor scale; w: their errors' weights, or null.
inline vi best_scale(const vf* y, const vf* w) {
    vf amax = y[0], heaviest = y[0], weight = w ? w[0] : splat(1.0f);
    vf most = weight * y[0] * y[0];
    for (int j = 1; j < 16; ++j) {
        amax = max(y[j], amax);
        const vf wj = w ? w[j] : splat(1.0f);
        const vf square = wj * y[j] * y[j];
        const vi more = square > most;
        most = more ? square : most;
        heaviest = more ? y[j] : heaviest;
        weight = more ? wj : weight;
    }
    const vi start = max(e4m3_codes(amax / 6.0f), splat(1));
    vi best = start;
    vf best_error = error(y, w, start);
    for (int up = 1; up <= UP; ++up) {
        const vi code = min(start + up, splat(LAST));
        const vf e = error(y, w, code);
        const vi better = e < best_error;
        best = better ? code : best;
        best_error = better ? e : best_error;
    }
    vi live = splat(-1);
    for (int down = 1; down < LAST; ++down) {
        const vi code = max(start - down, splat(1));
        const vf clipped = max(heaviest - 6.0f * e4m3_values(code), vf{});
        live &= (start - down >= 1) & (weight * clipped * clipped < best_error);
        if (!any(live)) {
            break;
        }
        const vf e = error(y, w, code);
        const vi better = live & (e < best_error);
        best = better ? code : best;
        best_error = better ? e : best_error;
    }
    return best;
}

void quantize(const float* x, uint8_t* out, int64_t rows, int64_t cols, float scale, const float* importance) {
    each_batch<16>(x, rows, cols, importance,
                   [&](int64_t first, int count, const float* const* block, const float* const* weight) {
        vf v[16], w[16], y[16];
        transpose<16>(block, v);
        if (weight) {
            transpose<16>(weight, w);
        }
        for (int j = 0; j < 16; ++j) {
            y[j] = magnitude(v[j]) / scale;
        }
        const vi best = best_scale(y, weight ? w : nullptr);
        const vf inverse = 1.0f / e4m3_values(best);
        vi words[2]{}; // code j in the low half of byte j, code 8 + j in the high half
        for (int j = 0; j < 16; ++j) {
            const vf q = round_e2m1(y[j] * inverse);
            const vi code = q < 1 ? truncate(q * 2.0f) : (bits(q) >> 22) - 252;
            const vi sign = (v[j] < 0) & (q > 0) & 8;
            words[j % 8 / 4] |= (code | sign) << (8 * (j % 4) + 4 * (j / 8));
        }
        for (int i = 0; i < count; ++i) {
            const int64_t b = first + i;
            uint8_t* super_block = out + b / 4 * 36;
            super_block[b % 4] = uint8_t(best[i]);
            const int32_t codes[2] = {words[0][i], words[1][i]};
            std::memcpy(super_block + 4 + 8 * (b % 4), codes, 8);
        }
    });
}

} // namespace

void add_nvfp4(KernelTable& t) {
    t.nvfp4 = quantize;
}

} // namespace lg::LG_ISA
