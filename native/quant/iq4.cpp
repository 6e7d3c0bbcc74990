// IQ4_NL and IQ4_XS; see src/loragraft/quants/iq4.py for the formats and the source of the search.
//
// A lane is a block of IQ4_NL, or a super-block of IQ4_XS, whose eight sub-blocks then follow one another: so the scales
// of a super-block meet in one lane, and its sum of squares, which is sequential, runs in all lanes at once.
#include "kernels.h"
#include "simd/half.h"
#include "simd/lanes.h"

namespace lg::LG_ISA {
namespace {

constexpr float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int TRIES = 7;

// ---- The nearest of the 16 values: ties go up, NaN to the last

#if defined(LG_ISA_avx512)
// v rounded to a multiple of 8 lies in one of 32 cells, and no cell holds more than one of the middles between values.
struct Cells {
    alignas(64) float middle[32], below[32], above[32];
    alignas(64) int32_t code[32]; // of the value below
};

constexpr Cells make_cells() {
    Cells c{};
    for (int cell = -16; cell < 16; ++cell) {
        int code = 0;
        while (code < 14 && (VALUES[code] + VALUES[code + 1]) / 2 < float(8 * cell - 4)) {
            ++code;
        }
        c.middle[cell & 31] = (VALUES[code] + VALUES[code + 1]) / 2;
        c.below[cell & 31] = VALUES[code];
        c.above[cell & 31] = VALUES[code + 1];
        c.code[cell & 31] = code;
    }
    return c;
}

constexpr Cells CELLS = make_cells();

struct Nearest {
    vf v;
    vi cell;
    explicit Nearest(vf value) {
        // minps and maxps give their second operand for NaN: the upper bound.
        v = (vf)_mm512_max_ps(_mm512_min_ps((__m512)value, (__m512)splat(120.0f)), (__m512)splat(-128.0f));
        cell = bits(v + 12582912.0f * 8); // the last place is 8; vpermi2 looks at the lowest five bits
    }
    static vf lookup(const float* table, vi cell) {
        return (vf)_mm512_permutex2var_ps(_mm512_load_ps(table), (__m512i)cell, _mm512_load_ps(table + 16));
    }
    vi up() const { return v >= lookup(CELLS.middle, cell); }
    vf value() const { return up() ? lookup(CELLS.above, cell) : lookup(CELLS.below, cell); }
    vi code() const {
        const vi low = (vi)_mm512_permutex2var_epi32(_mm512_load_si512(CELLS.code), (__m512i)cell,
                                                     _mm512_load_si512(CELLS.code + 16));
        return low - up();
    }
};
#elif defined(LG_ISA_avx2)
// Binary search; the last two of its four steps look their bounds up among eight.
struct Nearest {
    vi eighth; // which pair of values
    vi up;     // the upper of the pair, as a mask

    static constexpr float middle(int code) { return (VALUES[code] + VALUES[code + 1]) / 2; }
    static vf pick(vf table, vi index) { return (vf)_mm256_permutevar8x32_ps((__m256)table, (__m256i)index); }
    static vf choose(vi mask, vf yes, vf no) {
        return (vf)_mm256_blendv_ps((__m256)no, (__m256)yes, (__m256)mask);
    }
    static vi not_below(vf v, vf bound) { return (vi)_mm256_cmp_ps((__m256)v, (__m256)bound, _CMP_NLT_UQ); }

    explicit Nearest(vf v) {
        const vi half = not_below(v, splat(middle(7)));
        const vi quarter = not_below(v, choose(half, splat(middle(11)), splat(middle(3))));
        const vi q = -(half + half + quarter);
        const vf among4 = {middle(1), middle(5), middle(9), middle(13), 0, 0, 0, 0};
        eighth = q + q - not_below(v, pick(among4, q));
        const vf among8 = {middle(0), middle(2), middle(4), middle(6), middle(8), middle(10), middle(12), middle(14)};
        up = not_below(v, pick(among8, eighth));
    }
    vf value() const {
        const vf even = {VALUES[0], VALUES[2], VALUES[4], VALUES[6], VALUES[8], VALUES[10], VALUES[12], VALUES[14]};
        const vf odd = {VALUES[1], VALUES[3], VALUES[5], VALUES[7], VALUES[9], VALUES[11], VALUES[13], VALUES[15]};
        return choose(up, pick(odd, eighth), pick(even, eighth));
    }
    vi code() const { return eighth + eighth - up; }
};
#else
struct Nearest {
    vf v;
    explicit Nearest(vf value) : v(value) {}
    template <typename Step>
    void walk(Step step) const {
        for (int i = 0; i < 15; ++i) {
            step(i, ~(v < (VALUES[i] + VALUES[i + 1]) / 2));
        }
    }
    vf value() const {
        vf sum = splat(VALUES[0]);
        walk([&](int i, vi passed) { sum += floats(passed & bits(splat(VALUES[i + 1] - VALUES[i]))); });
        return sum;
    }
    vi code() const {
        vi sum{};
        walk([&](int, vi passed) { sum -= passed; });
        return sum;
    }
};
#endif

// ---- The search

struct Fit {
    vf xq, qq;
};

inline Fit fit(const vf* x, const vf* w, vf inverse) {
    Fit sum{};
    for (int j = 0; j < 32; ++j) {
        const vf q = Nearest(inverse * x[j]).value();
        const vf wq = w[j] * q;
        sum.xq += wq * x[j];
        sum.qq += wq * q;
    }
    return sum;
}

// The best of 16 scales for 32 weights.
inline vf best_scale(const vf* x, const vf* w) {
    vf largest{}, amax{};
    for (int j = 0; j < 32; ++j) {
        const vf a = magnitude(x[j]);
        largest = a > amax ? x[j] : largest;
        amax = max(a, amax);
    }
    const vi tiny = amax < 1e-15f;
    largest = tiny ? splat(1.0f) : largest;
    vf d = -largest / VALUES[0];
    Fit sum = fit(x, w, 1.0f / d);
    d = sum.qq > 0 ? sum.xq / sum.qq : vf{};
    vf best = d * sum.xq;
    for (int step = -TRIES; step <= TRIES; ++step) {
        sum = fit(x, w, (float(step) + VALUES[0]) / largest);
        const vi better = (sum.qq > 0) & (sum.xq * sum.xq > best * sum.qq);
        d = better ? sum.xq / sum.qq : d;
        best = better ? d * sum.xq : best;
    }
    return tiny ? vf{} : d;
}

inline vf inverse(vf d) { return d != 0 ? 1.0f / d : vf{}; }

// The weights of the squared errors of 32 weights; `importance` holds theirs, or is null.
inline void error_weights(const vf* x, const vf* importance, vf sigma2, vf* w) {
    for (int j = 0; j < 32; ++j) {
        const vf square = x[j] * x[j];
        w[j] = importance ? importance[j] * sqrt(sigma2 + square) : square;
    }
}

template <int N>
inline vf mean_square_doubled(const vf* x) {
    vf sum{};
    for (int j = 0; j < N; ++j) {
        sum += x[j] * x[j];
    }
    return sum * (2.0f / N);
}

// 32 codes as 16 bytes: code j in the low half of byte j, code 16 + j in the high half. Four bytes to a word.
inline void pack_codes(const vf* x, vf inverse, vi* words) {
    for (int word = 0; word < 4; ++word) {
        vi packed{};
        for (int byte = 0; byte < 4; ++byte) {
            const int j = 4 * word + byte;
            const vi pair = Nearest(inverse * x[j]).code() | Nearest(inverse * x[16 + j]).code() << 4;
            packed |= pair << (8 * byte);
        }
        words[word] = packed;
    }
}

inline void put_words(const vi* words, int lane, uint8_t* y) {
    for (int word = 0; word < 4; ++word) {
        const int32_t v = words[word][lane];
        std::memcpy(y + 4 * word, &v, 4);
    }
}

inline void unpack_codes(const uint8_t* y, float d, float* x) {
    for (int j = 0; j < 16; ++j) {
        x[j] = d * VALUES[y[j] & 15];
        x[j + 16] = d * VALUES[y[j] >> 4];
    }
}

// ---- IQ4_NL

void iq4_nl_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    each_batch<32>(x, rows, cols, importance,
                   [&](int64_t first, int count, const float* const* block, const float* const* weight) {
        vf v[32], qw[32], w[32];
        transpose<32>(block, v);
        if (weight) {
            transpose<32>(weight, qw);
        }
        error_weights(v, weight ? qw : nullptr, mean_square_doubled<32>(v), w);
        const vf d = best_scale(v, w);
        vi words[4];
        pack_codes(v, inverse(d), words);
        for (int i = 0; i < count; ++i) {
            uint8_t* out = y + (first + i) * 18;
            put_half(out, d[i]);
            put_words(words, i, out + 2);
        }
    });
}

void iq4_nl_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 18) {
        unpack_codes(y + 2, get_half(y), x);
    }
}

// ---- IQ4_XS: d, the scales' high bits (2 each), their low nibbles, the codes

void iq4_xs_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    each_batch<256>(x, rows, cols, importance,
                    [&](int64_t first, int count, const float* const* block, const float* const* weight) {
        vf v[256], scales[8];
        transpose<256>(block, v);
        const vf sigma2 = mean_square_doubled<256>(v);
        vf largest{}, amax{};
        for (int s = 0; s < 8; ++s) {
            vf qw[32], w[32];
            if (weight) {
                const float* sub[LANES];
                for (int i = 0; i < LANES; ++i) {
                    sub[i] = weight[i] + 32 * s;
                }
                transpose<32>(sub, qw);
            }
            error_weights(v + 32 * s, weight ? qw : nullptr, sigma2, w);
            scales[s] = best_scale(v + 32 * s, w);
            const vf a = magnitude(scales[s]);
            largest = a > amax ? scales[s] : largest;
            amax = a > amax ? a : amax;
        }
        const vf d = -largest / 32.0f;
        const vf id = inverse(d);
        vi high{}, low{}, words[8][4];
        for (int s = 0; s < 8; ++s) {
            const vi step = max(min(nearest_int(id * scales[s]), splat(31)), splat(-32));
            pack_codes(v + 32 * s, inverse(d * to_float(step)), words[s]);
            low |= ((step + 32) & 15) << (4 * s);
            high |= ((step + 32) >> 4) << (2 * s);
        }
        for (int i = 0; i < count; ++i) {
            uint8_t* out = y + (first + i) * 136;
            put_half(out, d[i]);
            const uint16_t high_bits = uint16_t(high[i]);
            const int32_t low_bits = low[i];
            std::memcpy(out + 2, &high_bits, 2);
            std::memcpy(out + 4, &low_bits, 4);
            for (int s = 0; s < 8; ++s) {
                put_words(words[s], i, out + 8 + 16 * s);
            }
        }
    });
}

void iq4_xs_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 256; ++b, y += 136) {
        const float d = get_half(y);
        uint16_t high;
        std::memcpy(&high, y + 2, 2);
        for (int s = 0; s < 8; ++s, x += 32) {
            const int step = (y[4 + s / 2] >> (4 * (s % 2)) & 15) | (high >> (2 * s) & 3) << 4;
            unpack_codes(y + 8 + 16 * s, d * float(step - 32), x);
        }
    }
}

} // namespace

void add_iq4(KernelTable& t) {
    t.type[IQ4_NL] = {iq4_nl_quantize, iq4_nl_dequantize};
    t.type[IQ4_XS] = {iq4_xs_quantize, iq4_xs_dequantize};
}

} // namespace lg::LG_ISA
