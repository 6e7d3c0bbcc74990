// Quantizing to the K types, a tile of up to 64 super-blocks of 256 weights at a time:
//   1. transpose, so that a sub-block of 16 or 32 weights lies in a lane, and search its scale (search.h);
//   2. quantize the sub-blocks' scales, a super-block per lane;
//   3. round every weight with the scale as it will be read back, and pack.
// A sub-block whose stored scale is zero keeps the codes of the search; those are computed again, for it alone.
// The NumPy twin is quants/kquants.py.
#include "simd/half.h"
#include "kernels.h"
#include "quant/tile.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

namespace lg::LG_ISA {

namespace {

constexpr int SUPER = 256;
constexpr int TILE = WEIGHTS / SUPER; // super-blocks, at most

struct Tile {
    const float* x;
    int count;         // super-blocks
    int padded;        // the same up to a multiple of LANES; those beyond `count` are zeros
    bool weighted;     // with importance
    float* weights;    // which is here, a value for every weight, until weigh() makes the weights' weights of it
    Searched sub;
    // Codes of the super-blocks' scales and minima: [sub-block][super-block].
    alignas(64) int32_t scale_code[16 * TILE];
    alignas(64) int32_t low_code[16 * TILE];
    alignas(64) float d[TILE], dmin[TILE];
};

// Makes importance * sqrt(factor * mean square of the super-block + x^2) of the importance; squares are summed in the
// weights' order.
void weigh(Tile& t, float factor) {
    alignas(64) float sigma2[TILE];
    for (int b = 0; b < t.padded; b += LANES) {
        vf sum = vf{};
        for (int c = 0; c < SUPER; c += LANES) {
            vf x[LANES];
            transpose_from(t.x + b * SUPER + c, SUPER, x);
            for (int i = 0; i < LANES; ++i) {
                sum += x[i] * x[i];
            }
        }
        store(sigma2 + b, factor * sum / float(SUPER));
    }
    for (int k = 0; k < t.padded * SUPER; k += LANES) {
        const vf x = load(t.x + k);
        store(t.weights + k, load(t.weights + k) * sqrt(sigma2[k / SUPER] + x * x));
    }
}

// ---- the super-blocks' scales: calls quantize(first super-block, values of sub-block 0 .. SUBS - 1 by lane)

template <int SUBS, class Quantize>
inline void each_super(const Tile& t, const float* values, Quantize quantize) {
    for (int b = 0; b < t.padded; b += LANES) {
        vf v[SUBS < LANES ? LANES : SUBS];
        for (int c = 0; c < SUBS; c += LANES) {
            transpose_from(values + b * SUBS + c, SUBS, v + c);
        }
        quantize(b, v);
    }
}

// Against the largest; codes 0 .. 255 wrap as the reference's bytes do.
template <int SUBS>
void plain_scales(const Tile& t, const float* values, int top, float* d, int32_t* codes) {
    each_super<SUBS>(t, values, [&](int b, const vf* v) {
        vf high = vf{};
        for (int j = 0; j < SUBS; ++j) {
            high = max(v[j], high);
        }
        const vf inverse = high > 0.0f ? float(top) / high : vf{};
        store(d + b, high > 0.0f ? high / float(top) : vf{});
        for (int j = 0; j < SUBS; ++j) {
            store(codes + j * TILE + b, nearest_int(inverse * v[j]) & 255);
        }
    });
}

template <int SUBS>
void fitted_scales(const Tile& t, const float* values, const float* weights, int top, float* d, int32_t* codes) {
    vf w[TILE / LANES][SUBS < LANES ? LANES : SUBS];
    each_super<SUBS>(t, weights, [&](int b, const vf* v) { std::copy(v, v + SUBS, w[b / LANES]); });
    each_super<SUBS>(t, values, [&](int b, const vf* v) {
        vi code[SUBS];
        store(d + b, search_positive<SUBS>(v, w[b / LANES], top, code));
        for (int j = 0; j < SUBS; ++j) {
            store(codes + j * TILE + b, code[j]);
        }
    });
}

// ---- rounding with the stored scale

template <int N>
struct Stored {
    float scale[SUPER / N];
    float low[SUPER / N];
};

// Codes above `low` of super-block b; `kept(sub-block of the tile, element)` says a code of the search.
template <int N, bool OFFSET, class Kept>
inline void round_again(const Tile& t, int b, const Stored<N>& stored, int low, int high, Kept kept, uint8_t* codes) {
    for (int j = 0; j < SUPER / N; ++j) {
        const float* x = t.x + b * SUPER + j * N;
        if (stored.scale[j] == 0.0f) {
            for (int i = 0; i < N; ++i) {
                codes[j * N + i] = kept(b * (SUPER / N) + j, i);
            }
            continue;
        }
        for (int i = 0; i < N; i += LANES) {
            const vf v = OFFSET ? load(x + i) + stored.low[j] : load(x + i);
            const vi l = min(max(nearest_int(v / stored.scale[j]), splat(low)), splat(high)) - low;
            store_bytes(codes + j * N + i, l);
        }
    }
}

template <int N>
uint8_t kept_affine(const Tile& t, int s, int i, int top) {
    return uint8_t(std::clamp(nearest_int(t.sub.inverse[s] * (t.x[s * N + i] - t.sub.from[s])), 0, top));
}

uint8_t kept_symmetric(const Tile& t, int s, int i, int half) {
    if (t.sub.inverse[s] == 0.0f) {
        return 0;
    }
    return uint8_t(half + std::clamp(nearest_int(t.sub.inverse[s] * t.x[s * 16 + i]), -half, half - 1));
}

// ---- bit layouts

// Of each 128 codes of 2 bits, byte l holds codes l, l + 32, l + 64 and l + 96.
inline void pack_crumbs(const uint8_t* c, uint8_t* y) {
    for (int h = 0; h < 2; ++h) {
        for (int l = 0; l < 32; ++l) {
            const uint8_t* p = c + 128 * h + l;
            y[32 * h + l] = uint8_t(p[0] | p[32] << 2 | p[64] << 4 | p[96] << 6);
        }
    }
}

// Of each 64 codes of 4 bits, byte l holds codes l and l + 32.
inline void pack_nibbles(const uint8_t* c, uint8_t* y) {
    for (int h = 0; h < 4; ++h) {
        for (int l = 0; l < 32; ++l) {
            y[32 * h + l] = uint8_t((c[64 * h + l] & 15) | (c[64 * h + l + 32] & 15) << 4);
        }
    }
}

// Bit k of byte l is bit `bit` of code 32 k + l.
inline void pack_high_bits(const uint8_t* c, int bit, uint8_t* y) {
    for (int l = 0; l < 32; ++l) {
        uint8_t bits = 0;
        for (int k = 0; k < 8; ++k) {
            bits |= uint8_t(((c[32 * k + l] >> bit) & 1) << k);
        }
        y[l] = bits;
    }
}

// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each plain, the others' low halves together
// and their top bits above the first four.
inline void pack_scales_mins(const Tile& t, int b, uint8_t* y) {
    for (int j = 0; j < 4; ++j) {
        const int s0 = t.scale_code[j * TILE + b], s1 = t.scale_code[(j + 4) * TILE + b];
        const int m0 = t.low_code[j * TILE + b], m1 = t.low_code[(j + 4) * TILE + b];
        y[j] = uint8_t(s0 | (s1 >> 4) << 6);
        y[j + 4] = uint8_t(m0 | (m1 >> 4) << 6);
        y[j + 8] = uint8_t((s1 & 15) | (m1 & 15) << 4);
    }
}

inline void unpack_scales_mins(const uint8_t* y, uint8_t* scales, uint8_t* minima) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = y[j] & 63;
        minima[j] = y[j + 4] & 63;
        scales[j + 4] = uint8_t((y[j + 8] & 15) | (y[j] >> 6) << 4);
        minima[j + 4] = uint8_t((y[j + 8] >> 4) | (y[j + 4] >> 6) << 4);
    }
}

// ---- Q2_K: 16 scales and minima of 4 bits, codes [64], d, dmin

void q2_k_tile(Tile& t, uint8_t* y) {
    Searched& sub = t.sub;
    const int n = t.padded * SUPER;
    if (t.weighted) {
        weigh(t, 1.0f);
        static constexpr AffineSearch WEIGHTED = affine_search(3, -0.9f, 0.05f, 37);
        search_affine_tile<16, 3, false>(t.x, t.weights, n, WEIGHTED, sub);
        fitted_scales<16>(t, sub.scale, sub.weight, 15, t.d, t.scale_code);
        fitted_scales<16>(t, sub.low, sub.weight, 15, t.dmin, t.low_code);
    } else {
        static constexpr AffineSearch PLAIN = affine_search(3, -0.5f, 0.1f, 16);
        search_affine_tile<16, 3, true>(t.x, nullptr, n, PLAIN, sub, [](const vf* x, vf* w) {
            for (int k = 0; k < 16 * G; ++k) {
                w[k] = magnitude(x[k]);
            }
        });
        plain_scales<16>(t, sub.scale, 15, t.d, t.scale_code);
        plain_scales<16>(t, sub.low, 15, t.dmin, t.low_code);
    }
    for (int b = 0; b < t.count; ++b, y += 84) {
        const float d = put_half(y + 80, t.d[b]);
        const float dmin = put_half(y + 82, t.dmin[b]);
        Stored<16> stored;
        for (int j = 0; j < 16; ++j) {
            y[j] = uint8_t(t.scale_code[j * TILE + b] | t.low_code[j * TILE + b] << 4);
            stored.scale[j] = d * float(y[j] & 15);
            stored.low[j] = dmin * float(y[j] >> 4);
        }
        uint8_t codes[SUPER];
        round_again<16, true>(t, b, stored, 0, 3, [&](int s, int i) { return kept_affine<16>(t, s, i, 3); }, codes);
        pack_crumbs(codes, y + 16);
    }
}

// ---- Q3_K: high bits [32], codes' low bits [64], 16 scales of 6 bits [12], d

void pack_q3_k(const Tile& t, int b, const uint8_t* codes, uint8_t* y) {
    uint8_t low[SUPER];
    for (int i = 0; i < SUPER; ++i) {
        low[i] = codes[i] & 3;
    }
    pack_high_bits(codes, 2, y);
    pack_crumbs(low, y + 32);
    const int32_t* s = t.scale_code + b;
    for (int j = 0; j < 8; ++j) {
        y[96 + j] = uint8_t((s[j * TILE] & 15) | (s[(j + 8) * TILE] & 15) << 4);
    }
    for (int j = 0; j < 4; ++j) {
        y[104 + j] = uint8_t(s[j * TILE] >> 4 | (s[(j + 4) * TILE] >> 4) << 2 | (s[(j + 8) * TILE] >> 4) << 4
                             | (s[(j + 12) * TILE] >> 4) << 6);
    }
}

Stored<16> stored_q3_k(const Tile& t, int b, float d) {
    Stored<16> stored;
    for (int j = 0; j < 16; ++j) {
        stored.scale[j] = d * float(t.scale_code[j * TILE + b] - 32);
    }
    return stored;
}

void q3_k_weighted(Tile& t, uint8_t* y) {
    weigh(t, 2.0f);
    search_symmetric_tile<16, 4>(t.x, t.weights, t.padded * SUPER, t.sub);
    vf sums[TILE / LANES][16];
    each_super<16>(t, t.sub.weight, [&](int b, const vf* v) { std::copy(v, v + 16, sums[b / LANES]); });
    each_super<16>(t, t.sub.scale, [&](int b, const vf* v) {
        const Symmetric<1> r = search_symmetric<16, 1, 32, true>(v, sums[b / LANES]);
        store(t.d + b, r.scale[0]);
        for (int j = 0; j < 16; ++j) {
            const vi l = min(max(nearest_int(r.inverse[0] * v[j]), splat(-32)), splat(31)) + 32;
            store(t.scale_code + j * TILE + b, r.zero[0] ? vi{} : l);
        }
    });
    for (int b = 0; b < t.count; ++b, y += 110) {
        uint8_t codes[SUPER];
        round_again<16, false>(t, b, stored_q3_k(t, b, put_half(y + 108, t.d[b])), -4, 3,
                               [&](int s, int i) { return kept_symmetric(t, s, i, 4); }, codes);
        pack_q3_k(t, b, codes, y);
    }
}

// Searches the n listed sub-blocks of a tile by up to SWEEPS sweeps. Keeps on the list those that must sweep on, and
// returns their number; of the others the scales are set, and with `kept` their codes 0 .. 7, at sub-block * 16 + element.
template <int SWEEPS>
int sweep_some(Tile& t, uint16_t* list, int n, uint8_t* kept = nullptr) {
    constexpr int GROUPS = SWEEPS ? 4 : 2; // sweeps wait for each other: more of them side by side
    int left = 0;
    for (int first = 0; first < n; first += LANES * GROUPS) {
        vf x[16 * GROUPS], code[16 * GROUPS], scale[GROUPS];
        vi moving[GROUPS];
        for (int g = 0; g < GROUPS; ++g) {
            const float* rows[LANES];
            for (int i = 0; i < LANES; ++i) {
                rows[i] = t.x + list[std::min(first + g * LANES + i, n - 1)] * 16;
            }
            vf block[16];
            transpose<16>(rows, block);
            for (int i = 0; i < 16; ++i) {
                x[i * GROUPS + g] = block[i];
            }
        }
        search_sweeps<16, GROUPS, 4, SWEEPS>(x, scale, moving, kept ? code : nullptr);
        for (int k = first; k < std::min(first + LANES * GROUPS, n); ++k) {
            const int g = (k - first) / LANES, lane = (k - first) % LANES;
            t.sub.scale[list[k]] = scale[g][lane];
            for (int i = 0; kept && i < 16; ++i) {
                kept[list[k] * 16 + i] = uint8_t(code[i * GROUPS + g][lane] + 4.0f);
            }
            list[left] = list[k];
            left += moving[g][lane] != 0;
        }
    }
    return left;
}

void q3_k_plain(Tile& t, uint8_t* y) {
    uint16_t list[WEIGHTS / 16];
    uint8_t kept[WEIGHTS];
    std::iota(std::begin(list), std::end(list), uint16_t(0));
    int n = sweep_some<0>(t, list, t.padded * 16);
    n = sweep_some<1>(t, list, n);
    sweep_some<5>(t, list, n);
    each_super<16>(t, t.sub.scale, [&](int b, const vf* v) {
        vf top[1];
        largest<16, 1>(v, top);
        const vf inverse = -32.0f / top[0];
        const vi zero = top[0] == 0.0f;
        store(t.d + b, zero ? vf{} : 1.0f / inverse);
        for (int j = 0; j < 16; ++j) {
            const vi byte = (nearest_int(inverse * v[j]) << 24) >> 24;
            const vi l = min(max(byte, splat(-32)), splat(31)) + 32;
            store(t.scale_code + j * TILE + b, zero ? vi{} : l);
        }
    });
    Stored<16> stored[TILE];
    n = 0;
    for (int b = 0; b < t.count; ++b) {
        stored[b] = stored_q3_k(t, b, put_half(y + 110 * b + 108, t.d[b]));
        for (int j = 0; j < 16; ++j) {
            list[n] = uint16_t(b * 16 + j);
            n += stored[b].scale[j] == 0.0f;
        }
    }
    sweep_some<5>(t, list, n, kept);
    for (int b = 0; b < t.count; ++b) {
        uint8_t codes[SUPER];
        round_again<16, false>(t, b, stored[b], -4, 3, [&](int s, int i) { return kept[s * 16 + i]; }, codes);
        pack_q3_k(t, b, codes, y + 110 * b);
    }
}

void q3_k_tile(Tile& t, uint8_t* y) {
    (t.weighted ? q3_k_weighted : q3_k_plain)(t, y);
}

// ---- Q4_K: d, dmin, scales and minima [12], codes [128]. Q5_K: the same with the codes' high bits [32] before them

template <int TOP>
void affine_tile(Tile& t, uint8_t* y) {
    Searched& sub = t.sub;
    const int n = t.padded * SUPER;
    if (t.weighted) {
        weigh(t, 2.0f);
        static constexpr AffineSearch WEIGHTED = affine_search(TOP, -0.9f, 0.05f, 37);
        search_affine_tile<32, TOP, false>(t.x, t.weights, n, WEIGHTED, sub);
        fitted_scales<8>(t, sub.scale, sub.weight, 63, t.d, t.scale_code);
        fitted_scales<8>(t, sub.low, sub.weight, 63, t.dmin, t.low_code);
    } else {
        static constexpr AffineSearch PLAIN =
            TOP == 15 ? affine_search(15, -1.0f, 0.1f, 21) : affine_search(31, -0.5f, 0.1f, 16);
        search_affine_tile<32, TOP, false>(t.x, nullptr, n, PLAIN, sub, [](const vf* x, vf* w) {
            for (int g = 0; g < G; ++g) {
                vf sum = vf{};
                for (int i = 0; i < 32; ++i) {
                    sum += x[i * G + g] * x[i * G + g];
                }
                const vf mean = sqrt(sum / 32.0f);
                for (int i = 0; i < 32; ++i) {
                    w[i * G + g] = mean + magnitude(x[i * G + g]);
                }
            }
        });
        plain_scales<8>(t, sub.scale, 63, t.d, t.scale_code);
        plain_scales<8>(t, sub.low, 63, t.dmin, t.low_code);
    }
    if (!t.weighted || TOP == 31) { // the weighted Q4_K stores its codes without this
        for (int k = 0; k < 8 * TILE; ++k) {
            t.scale_code[k] = std::min(t.scale_code[k], 63);
            t.low_code[k] = std::min(t.low_code[k], 63);
        }
    }
    for (int b = 0; b < t.count; ++b, y += TOP == 15 ? 144 : 176) {
        const float d = put_half(y, t.d[b]);
        const float dmin = put_half(y + 2, t.dmin[b]);
        pack_scales_mins(t, b, y + 4);
        uint8_t scales[8], minima[8];
        unpack_scales_mins(y + 4, scales, minima);
        Stored<32> stored;
        for (int j = 0; j < 8; ++j) {
            stored.scale[j] = d * float(scales[j]);
            stored.low[j] = dmin * float(minima[j]);
        }
        uint8_t codes[SUPER];
        round_again<32, true>(t, b, stored, 0, TOP, [&](int s, int i) { return kept_affine<32>(t, s, i, TOP); }, codes);
        if constexpr (TOP == 31) {
            pack_high_bits(codes, 4, y + 16);
        }
        pack_nibbles(codes, y + (TOP == 15 ? 16 : 48));
    }
}

// ---- Q6_K: codes' low halves [128], high bits [64], 16 scales of 8 bits, d

void q6_k_tile(Tile& t, uint8_t* y) {
    search_symmetric_tile<16, 32>(t.x, t.weighted ? t.weights : nullptr, t.padded * SUPER, t.sub, [](const vf* x, vf* w) {
        for (int k = 0; k < 16 * G; ++k) {
            w[k] = x[k] * x[k];
        }
    });
    alignas(64) float top[TILE];
    each_super<16>(t, t.sub.scale, [&](int b, const vf* v) {
        vf high[1];
        largest<16, 1>(v, high);
        const vf inverse = -128.0f / high[0];
        store(top + b, high[0]);
        store(t.d + b, 1.0f / inverse);
        for (int j = 0; j < 16; ++j) {
            const vi l = min(nearest_int(inverse * v[j]), splat(127));
            store(t.scale_code + j * TILE + b, l);
        }
    });
    for (int b = 0; b < t.count; ++b, y += 210) {
        if (std::fabs(top[b]) < TINY) {
            std::memset(y, 0, 210);
            continue;
        }
        const float d = put_half(y + 208, t.d[b]);
        Stored<16> stored;
        for (int j = 0; j < 16; ++j) {
            const int8_t scale = int8_t(t.scale_code[j * TILE + b]);
            y[192 + j] = uint8_t(scale);
            stored.scale[j] = d * float(scale);
        }
        uint8_t codes[SUPER], high[SUPER];
        round_again<16, false>(t, b, stored, -32, 31, [&](int s, int i) { return kept_symmetric(t, s, i, 32); }, codes);
        for (int h = 0; h < 2; ++h) {
            for (int l = 0; l < 64; ++l) {
                const uint8_t* c = codes + 128 * h + l;
                y[64 * h + l] = uint8_t((c[0] & 15) | (c[64] & 15) << 4);
            }
        }
        for (int i = 0; i < SUPER; ++i) {
            high[i] = codes[i] >> 4;
        }
        pack_crumbs(high, y + 128);
    }
}

template <auto QuantizeTile, int BYTES>
void each_tile(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    const int64_t per_row = cols / SUPER;
    const int64_t total = rows * per_row;
    alignas(64) float padded[WEIGHTS], weights[WEIGHTS];
    Tile tile;
    tile.weighted = importance;
    tile.weights = weights;
    for (int64_t s = 0; s < total; s += TILE) {
        tile.count = int(std::min<int64_t>(TILE, total - s));
        tile.padded = (tile.count + LANES - 1) / LANES * LANES;
        tile.x = x + s * SUPER;
        if (tile.count < tile.padded) {
            std::memcpy(padded, tile.x, size_t(tile.count) * SUPER * 4);
            std::fill(padded + tile.count * SUPER, padded + tile.padded * SUPER, 0.0f);
            tile.x = padded;
        }
        for (int b = 0; importance && b < tile.padded; ++b) {
            std::memcpy(weights + b * SUPER, importance + (s + b) % per_row * SUPER, SUPER * 4);
        }
        QuantizeTile(tile, y + s * BYTES);
    }
}

// ---- back

template <auto Block, int BYTES>
void each_back(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / SUPER; ++b) {
        Block(y + b * BYTES, x + b * SUPER);
    }
}

void q2_k_back(const uint8_t* y, float* x) {
    const float d = get_half(y + 80), dmin = get_half(y + 82);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * float(y[j] & 15), low = dmin * float(y[j] >> 4);
        const uint8_t* q = y + 16 + j / 8 * 32 + j % 2 * 16;
        for (int i = 0; i < 16; ++i) {
            x[16 * j + i] = scale * float((q[i] >> (j / 2 % 4 * 2)) & 3) - low;
        }
    }
}

void q3_k_back(const uint8_t* y, float* x) {
    const float d = get_half(y + 108);
    for (int j = 0; j < 16; ++j) {
        const int low = j < 8 ? y[96 + j] & 15 : y[96 + j - 8] >> 4;
        const float scale = d * float((low | ((y[104 + j % 4] >> (j / 4 * 2)) & 3) << 4) - 32);
        const uint8_t* high = y + j % 2 * 16;
        const uint8_t* q = y + 32 + j / 8 * 32 + j % 2 * 16;
        for (int i = 0; i < 16; ++i) {
            const int code = ((q[i] >> (j / 2 % 4 * 2)) & 3) | ((high[i] >> (j / 2)) & 1) << 2;
            x[16 * j + i] = scale * float(code - 4);
        }
    }
}

template <int TOP>
void affine_back(const uint8_t* y, float* x) {
    const float d = get_half(y), dmin = get_half(y + 2);
    uint8_t scales[8], minima[8];
    unpack_scales_mins(y + 4, scales, minima);
    for (int j = 0; j < 8; ++j) {
        const float scale = d * float(scales[j]), low = dmin * float(minima[j]);
        const uint8_t* q = y + (TOP == 15 ? 16 : 48) + j / 2 * 32;
        const uint8_t* high = y + 16;
        for (int i = 0; i < 32; ++i) {
            int code = (q[i] >> (j % 2 * 4)) & 15;
            if constexpr (TOP == 31) {
                code |= ((high[i] >> j) & 1) << 4;
            }
            x[32 * j + i] = scale * float(code) - low;
        }
    }
}

void q6_k_back(const uint8_t* y, float* x) {
    const float d = get_half(y + 208);
    for (int j = 0; j < 16; ++j) {
        const float scale = d * float(int8_t(y[192 + j]));
        const int quarter = j % 8 / 2;
        const uint8_t* q = y + j / 8 * 64 + quarter % 2 * 32 + j % 2 * 16;
        const uint8_t* high = y + 128 + j / 8 * 32 + j % 2 * 16;
        for (int i = 0; i < 16; ++i) {
            const int code = ((q[i] >> (quarter / 2 * 4)) & 15) | ((high[i] >> (quarter * 2)) & 3) << 4;
            x[16 * j + i] = scale * float(code - 32);
        }
    }
}

template <auto QuantizeTile, auto Back, int BYTES>
constexpr TypeKernels kernels_of() {
    return {each_tile<QuantizeTile, BYTES>, each_back<Back, BYTES>};
}

} // namespace

void add_kquants(KernelTable& t) {
    t.type[Q2_K] = kernels_of<q2_k_tile, q2_k_back, bytes_of(Q2_K)>();
    t.type[Q3_K] = kernels_of<q3_k_tile, q3_k_back, bytes_of(Q3_K)>();
    t.type[Q4_K] = kernels_of<affine_tile<15>, affine_back<15>, bytes_of(Q4_K)>();
    t.type[Q5_K] = kernels_of<affine_tile<31>, affine_back<31>, bytes_of(Q5_K)>();
    t.type[Q6_K] = kernels_of<q6_k_tile, q6_k_back, bytes_of(Q6_K)>();
}

} // namespace lg::LG_ISA
