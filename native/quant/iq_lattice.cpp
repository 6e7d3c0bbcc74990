// IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S; see src/loragraft/quants/iq_lattice.py for the formats and the search.
//
// A lane is one of the scales tried for a sub-block: they do not depend on each other until they are compared.
#include "kernels.h"
#include "simd/half.h"
#include "quant/iq_snap.h"
#include "quant/search.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <type_traits>

namespace lg::LG_ISA {
namespace {

enum class Refine { OFF, ALL, ALWAYS };

// The fields are those of Search in iq_lattice.py.
struct Spec {
    IqGridName grid;
    int sub, tries;
    float step;
    bool even_signs;
    float sigma, plain_sigma, tiny;
    Refine refine;
};

constexpr Spec IQ2_XXS_SPEC{IqGridName::IQ2_XXS, 32, 6, 0.1f, true, 1, 0, 1e-15f, Refine::ALWAYS};
constexpr Spec IQ2_XS_SPEC{IqGridName::IQ2_XS, 16, 9, 0.1f, true, 1, 0, 1e-15f, Refine::OFF};
constexpr Spec IQ2_S_SPEC{IqGridName::IQ2_S, 16, 9, 0.1f, false, 2, 0.25f, 1e-8f, Refine::OFF};
constexpr Spec IQ3_XXS_SPEC{IqGridName::IQ3_XXS, 32, 15, 0.2f, true, 2, 0, 1e-8f, Refine::OFF};
constexpr Spec IQ3_S_SPEC{IqGridName::IQ3_S, 32, 9, 0.2f, false, 2, 0, 0, Refine::ALL};

constexpr bool ternary(IqGridName grid) { return grid != IqGridName::IQ3_XXS && grid != IqGridName::IQ3_S; }

// What a digit stands for: 2q + 1.
template <typename D>
constexpr Values<D> ODD{[](int q) { return float(2 * q + 1); }};

// ---- A super-block's magnitudes and weights

template <int SUB>
struct SuperBlock {
    alignas(64) float size[256], weight[256], root[256]; // magnitudes; their errors' weights; the roots of these
    uint8_t signs[32];
};

template <Spec S>
inline void prepare(const float* x, const float* importance, SuperBlock<S.sub>& b) {
    float sum = 0;
    for (int j = 0; j < 256; ++j) {
        sum += x[j] * x[j];
    }
    const float sigma2 = S.sigma * sum / 256.0f;
    if (importance) {
        for (int j = 0; j < 256; ++j) {
            b.weight[j] = importance[j] * std::sqrt(sigma2 + x[j] * x[j]);
        }
    } else if (S.plain_sigma != 0) {
        const float spread = S.plain_sigma * sigma2;
        for (int j = 0; j < 256; ++j) {
            b.weight[j] = spread + x[j] * x[j];
        }
    } else {
        for (int j = 0; j < 256; ++j) {
            b.weight[j] = x[j] * x[j];
        }
    }
    for (int j = 0; j < 256; ++j) {
        b.root[j] = std::sqrt(b.weight[j]);
        b.size[j] = x[j] >= 0 ? x[j] : -x[j];
    }
    for (int k = 0; k < 32; ++k) {
        const float* v = x + 8 * k;
        uint32_t negative = 0;
        for (int i = 0; i < 8; ++i) {
            negative |= uint32_t(!(v[i] >= 0)) << i;
        }
        if (S.even_signs) {
            if (std::popcount(negative) % 2) {
                // The least costly magnitude becomes negative instead.
                int least = 0;
                float cost = b.weight[8 * k] * v[0] * v[0];
                for (int i = 1; i < 8; ++i) {
                    const float c = b.weight[8 * k + i] * v[i] * v[i];
                    least = c < cost ? i : least;
                    cost = c < cost ? c : cost;
                }
                b.size[8 * k + least] = -b.size[8 * k + least];
                negative ^= 1u << least;
            }
            negative &= 127;
        }
        b.signs[k] = uint8_t(negative);
    }
}

// ---- A sub-block's search

template <Spec S>
struct SubBlock {
    using D = std::conditional_t<ternary(S.grid), Ternary, Octal>;
    static constexpr int GROUPS = S.sub / D::DIGITS;
    static constexpr int TRIES = 2 * S.tries + 1, VECTORS = (TRIES + LANES - 1) / LANES;
    static constexpr float TOP = 2 * D::BASE - 1;

    const IqGrid& grid;
    const float* size;
    const float* weight;
    Group<D> group[GROUPS];
    uint32_t codes[GROUPS];
    bool on_grid[GROUPS];
    float scale;

    SubBlock(const IqGrid& g, const float* size_, const float* weight_, const float* root)
        : grid(g), size(size_), weight(weight_) {
        for (int k = 0; k < GROUPS; ++k) {
            group[k].set(size + k * D::DIGITS, root + k * D::DIGITS);
        }
    }

    // `largest`: the magnitude at the highest digit; `scale` holds the scale to start from.
    void search(float largest) {
        vf inverse[VECTORS];
        alignas(64) float scales[VECTORS * LANES];
        for (int v = 0; v < VECTORS; ++v) {
            const vf step = to_float(lane_numbers() + (v * LANES - S.tries));
            inverse[v] = (TOP + step * S.step) / largest;
            store(scales + v * LANES, 1.0f / inverse[v]);
        }
        // Of group k at scale t: [k * TRIES + t], and room for a vector beyond.
        alignas(64) int32_t numbers[GROUPS * TRIES + 2 * LANES]{}, tried[GROUPS * TRIES + 2 * LANES];
        for (int k = 0; k < GROUPS; ++k) {
            for (int v = 0; v < VECTORS; ++v) {
                vi number{};
                for (int i = D::DIGITS - 1; i >= 0; --i) {
                    const vi q = nearest_int(0.5f * (inverse[v] * size[k * D::DIGITS + i] - 1.0f));
                    number = number * D::BASE + max(min(q, splat(D::BASE - 1)), vi{});
                }
                store(numbers + k * TRIES + v * LANES, number);
            }
        }
        for (int first = 0; first < GROUPS * TRIES; first += LANES) {
            const auto find = [&](int e) {
                const int k = std::min(e / TRIES, GROUPS - 1), t = e % TRIES;
                return nearest_in_lanes<D>(grid, numbers[e], group[k], ODD<D>, scales[t]);
            };
            store(tried + first, meet_all<LANES>(first, find).code);
        }
        alignas(64) float sumqx[VECTORS * LANES], sumq2[VECTORS * LANES];
        for (int v = 0; v < VECTORS; ++v) {
            vf qx{}, q2{};
            for (int k = 0; k < GROUPS; ++k) {
                vi code;
                std::memcpy(&code, tried + k * TRIES + v * LANES, sizeof code);
                add_products(weight + k * D::DIGITS, size + k * D::DIGITS, code, qx, q2,
                             std::make_index_sequence<D::DIGITS>{});
            }
            store(sumqx + v * LANES, qx);
            store(sumq2 + v * LANES, q2);
        }
        float best = 0;
        int chosen = -1;
        for (int t = 0; t < TRIES; ++t) {
            if (sumq2[t] > 0 && sumqx[t] * sumqx[t] > best * sumq2[t]) {
                scale = sumqx[t] / sumq2[t];
                best = scale * sumqx[t];
                chosen = t;
            }
        }
        for (int k = 0; k < GROUPS; ++k) {
            codes[k] = chosen < 0 ? grid.points[0] : uint32_t(tried[k * TRIES + chosen]);
            on_grid[k] = chosen < 0 ? S.refine == Refine::OFF : grid.point[size_t(numbers[k * TRIES + chosen])] >= 0;
        }
        refine();
    }

    // The sums of w x q and w q^2 over a group, on top of what they hold.
    template <size_t... I>
    static void add_products(const float* w, const float* x, vi code, vf& qx, vf& q2, std::index_sequence<I...>) {
        const vf* values = (const vf*)ODD<D>.v;
        const auto add = [&](int i, vf q) {
            qx += w[i] * x[i] * q;
            q2 += w[i] * q * q;
        };
        (add(int(I), look_up<D, int(I)>(values, code)), ...);
    }

    void refine() {
        bool any_off = false;
        for (int k = 0; k < GROUPS; ++k) {
            any_off |= !on_grid[k];
        }
        if (!(scale > 0) || !(any_off || S.refine == Refine::ALWAYS)) {
            return;
        }
        const float inverse = 1.0f / scale;
        for (int k = 0; k < GROUPS; ++k) {
            if (S.refine == Refine::OFF && on_grid[k]) {
                continue;
            }
            int number = 0;
            for (int i = D::DIGITS - 1; i >= 0; --i) {
                const float v = 0.5f * (inverse * size[k * D::DIGITS + i] - 1.0f);
                const int q = (std::bit_cast<int32_t>(v + 12582912.0f) & 0x7FFFFF) - 0x400000;
                number = number * D::BASE + std::max(std::min(q, D::BASE - 1), 0);
            }
            codes[k] = snap_one<D>(grid, number, group[k], ODD<D>, scale);
        }
        float qx = 0, q2 = 0;
        for (int j = 0; j < S.sub; ++j) {
            const float q = float(2 * D::digit(codes[j / D::DIGITS], j % D::DIGITS) + 1);
            qx += weight[j] * size[j] * q;
            q2 += weight[j] * q * q;
        }
        if (q2 > 0) {
            scale = qx / q2;
        }
    }
};

// ---- A super-block's search

template <Spec S>
struct Found {
    static constexpr int SUBS = 256 / S.sub;
    uint16_t points[256 / SubBlock<S>::D::DIGITS];
    uint8_t signs[32];
    float scales[SUBS];
    bool skipped[SUBS];
};

// The scales to start from, where the grid's search follows a plain one.
template <Spec S>
inline void plain_scales(const SuperBlock<S.sub>& b, float* scales) {
    constexpr int SUBS = 256 / S.sub;
    for (int first = 0; first < SUBS; first += LANES) {
        const float* sizes[LANES];
        const float* weights[LANES];
        for (int i = 0; i < LANES; ++i) {
            const int sub = first + i < SUBS ? first + i : SUBS - 1;
            sizes[i] = b.size + sub * S.sub;
            weights[i] = b.weight + sub * S.sub;
        }
        vf x[S.sub], w[S.sub];
        vi codes[S.sub];
        transpose<S.sub>(sizes, x);
        transpose<S.sub>(weights, w);
        const vf found = search_positive<S.sub>(x, w, SubBlock<S>::D::BASE + 1, codes);
        for (int i = 0; i < LANES && first + i < SUBS; ++i) {
            scales[first + i] = found[i];
        }
    }
}

template <Spec S>
inline void find(const float* x, const float* importance, const IqGrid& grid, Found<S>& found) {
    using Sub = SubBlock<S>;
    SuperBlock<S.sub> b;
    prepare<S>(x, importance, b);
    float plain[Found<S>::SUBS];
    if (S.refine == Refine::ALWAYS) {
        plain_scales<S>(b, plain);
    }
    std::memset(&found, 0, sizeof found);
    for (int s = 0; s < Found<S>::SUBS; ++s) {
        const float* size = b.size + s * S.sub;
        float largest = size[0];
        for (int j = 1; j < S.sub; ++j) {
            largest = largest > size[j] ? largest : size[j];
        }
        found.skipped[s] = S.tiny != 0 ? largest < S.tiny : largest == 0;
        float start = largest / Sub::TOP;
        if (S.refine == Refine::ALWAYS) {
            start = plain[s];
            largest = start * Sub::D::BASE;
            found.skipped[s] |= largest <= 0;
        }
        if (found.skipped[s]) {
            continue;
        }
        Sub sub(grid, size, b.weight + s * S.sub, b.root + s * S.sub);
        sub.scale = start;
        sub.search(largest);
        const bool flip = sub.scale < 0;
        found.scales[s] = std::isnan(sub.scale) ? 0.0f : std::fabs(sub.scale); // the reference stops at NaN
        for (int k = 0; k < Sub::GROUPS; ++k) {
            found.points[s * Sub::GROUPS + k] = uint16_t(grid.point[size_t(grid.number_of(sub.codes[k]))]);
        }
        for (int k = 0; k < S.sub / 8; ++k) {
            const int at = s * S.sub / 8 + k;
            found.signs[at] = uint8_t((flip ? ~b.signs[at] : b.signs[at]) & (S.even_signs ? 127 : 255));
        }
    }
}

// Four-bit steps of the scales, and the super-block's scale; false if all scales are zero (then so are those).
template <Spec S>
inline bool super_scale(const Found<S>& found, float fudge, uint8_t* steps, uint8_t* d_bytes) {
    float largest = 0;
    for (const float scale : found.scales) {
        largest = largest > scale ? largest : scale;
    }
    if (largest == 0) {
        std::memset(steps, 0, Found<S>::SUBS);
        std::memset(d_bytes, 0, 2);
        return false;
    }
    const float d = largest / 31.0f;
    const uint16_t half = half_from_result(d * fudge);
    std::memcpy(d_bytes, &half, 2);
    const float inverse = 1.0f / d;
    for (int s = 0; s < Found<S>::SUBS; ++s) {
        const float v = 0.5f * (inverse * found.scales[s] - 1.0f);
        const int step = (std::bit_cast<int32_t>(v + 12582912.0f) & 0x7FFFFF) - 0x400000;
        steps[s] = uint8_t(std::max(std::min(step, 15), 0));
    }
    return true;
}

template <int N>
inline void put_nibbles(const uint8_t* steps, uint8_t* y) {
    for (int i = 0; i < N; i += 2) {
        y[i / 2] = uint8_t(steps[i] | steps[i + 1] << 4);
    }
}

inline void put_signs_and_scale(const uint8_t* signs, uint8_t step, uint8_t* y) {
    const uint32_t word = signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21 | uint32_t(step) << 28;
    std::memcpy(y, &word, 4);
}

template <Spec S, int BYTES, auto WRITE>
void quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    const IqGrid& grid = iq_grid(S.grid, LANES);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < cols; c += 256, x += 256, y += BYTES) {
            Found<S> found;
            find<S>(x, importance ? importance + c : nullptr, grid, found);
            WRITE(found, y);
        }
    }
}

// ---- Reading

inline float get_half(const uint8_t* y) {
    uint16_t half;
    std::memcpy(&half, y, 2);
    return float_from_half(half);
}

inline uint32_t get_word(const uint8_t* y) {
    uint32_t word;
    std::memcpy(&word, y, 4);
    return word;
}

// Seven sign bits -> eight, an even number of them set.
inline uint32_t with_parity(uint32_t bits) { return bits | uint32_t(std::popcount(bits) & 1) << 7; }

constexpr float TERNARY_VALUES[4] = {8, 25, 43, 0};
constexpr float IQ3_XXS_VALUES[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr float IQ3_S_VALUES[8] = {1, 3, 5, 7, 9, 11, 13, 15};

// One point's weights; `signs` from the first weight on.
template <typename D>
inline void put_point(const float* values, uint32_t code, uint32_t signs, float scale, float* x) {
    for (int i = 0; i < D::DIGITS; ++i) {
        const float v = scale * values[D::digit(code, i)];
        x[i] = signs >> i & 1 ? -v : v;
    }
}

template <IqGridName GRID, int BYTES, auto READ>
void dequantize(const uint8_t* y, float* x, int64_t n) {
    const uint16_t* points = iq_grid(GRID, LANES).points.data();
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += BYTES) {
        READ(y, points, x);
    }
}

// ---- IQ2_XXS: per 32 weights four points, then signs and scale

void write_iq2_xxs(const Found<IQ2_XXS_SPEC>& found, uint8_t* y) {
    uint8_t steps[8];
    if (!super_scale(found, 1.0f, steps, y)) {
        std::memset(y + 2, 0, 64);
        return;
    }
    for (int s = 0; s < 8; ++s) {
        for (int k = 0; k < 4; ++k) {
            y[2 + 8 * s + k] = uint8_t(found.points[4 * s + k]);
        }
        put_signs_and_scale(found.signs + 4 * s, steps[s], y + 2 + 8 * s + 4);
    }
}

void read_iq2_xxs(const uint8_t* y, const uint16_t* points, float* x) {
    const float d = get_half(y);
    for (int s = 0; s < 8; ++s) {
        const uint8_t* part = y + 2 + 8 * s;
        const uint32_t word = get_word(part + 4);
        const float scale = d * (0.5f + float(word >> 28)) * 0.25f;
        for (int k = 0; k < 4; ++k, x += 8) {
            put_point<Ternary>(TERNARY_VALUES, points[part[k]], with_parity(word >> (7 * k) & 127), scale, x);
        }
    }
}

// ---- IQ2_XS: per 8 weights a point (9 bits) and signs (7 bits); then the scales

void write_iq2_xs(const Found<IQ2_XS_SPEC>& found, uint8_t* y) {
    uint8_t steps[16];
    const bool some = super_scale(found, 1.0f, steps, y);
    for (int k = 0; k < 32; ++k) {
        const uint16_t word = some ? uint16_t(found.points[k] | found.signs[k] << 9) : uint16_t(0);
        std::memcpy(y + 2 + 2 * k, &word, 2);
    }
    put_nibbles<16>(steps, y + 66);
}

void read_iq2_xs(const uint8_t* y, const uint16_t* points, float* x) {
    const float d = get_half(y);
    for (int k = 0; k < 32; ++k, x += 8) {
        uint16_t word;
        std::memcpy(&word, y + 2 + 2 * k, 2);
        const float scale = d * (0.5f + float(y[66 + k / 4] >> (4 * (k / 2 % 2)) & 15)) * 0.25f;
        put_point<Ternary>(TERNARY_VALUES, points[word & 511], with_parity(word >> 9), scale, x);
    }
}

// ---- IQ2_S: points' low bytes, signs, points' high bits (2 each), scales

void write_iq2_s(const Found<IQ2_S_SPEC>& found, uint8_t* y) {
    uint8_t steps[16];
    super_scale(found, 0.9875f, steps, y);
    std::memset(y + 66, 0, 8);
    for (int k = 0; k < 32; ++k) {
        y[2 + k] = uint8_t(found.points[k]);
        y[34 + k] = found.signs[k];
        y[66 + k / 4] |= uint8_t(found.points[k] >> 8 << (2 * (k % 4)));
    }
    put_nibbles<16>(steps, y + 74);
}

void read_iq2_s(const uint8_t* y, const uint16_t* points, float* x) {
    const float d = get_half(y);
    for (int k = 0; k < 32; ++k, x += 8) {
        const uint32_t point = y[2 + k] | (y[66 + k / 4] >> (2 * (k % 4)) & 3) << 8;
        const float scale = d * (0.5f + float(y[74 + k / 4] >> (4 * (k / 2 % 2)) & 15)) * 0.25f;
        put_point<Ternary>(TERNARY_VALUES, points[point], y[34 + k], scale, x);
    }
}

// ---- IQ3_XXS: points, then signs and scales

void write_iq3_xxs(const Found<IQ3_XXS_SPEC>& found, uint8_t* y) {
    uint8_t steps[8];
    if (!super_scale(found, 1.0125f, steps, y)) {
        std::memset(y + 2, 0, 96);
        return;
    }
    for (int k = 0; k < 64; ++k) {
        y[2 + k] = uint8_t(found.points[k]);
    }
    for (int s = 0; s < 8; ++s) {
        put_signs_and_scale(found.signs + 4 * s, steps[s], y + 66 + 4 * s);
    }
}

void read_iq3_xxs(const uint8_t* y, const uint16_t* points, float* x) {
    const float d = get_half(y);
    for (int s = 0; s < 8; ++s) {
        const uint32_t word = get_word(y + 66 + 4 * s);
        const float scale = d * (0.5f + float(word >> 28)) * 0.5f;
        for (int k = 0; k < 8; ++k, x += 4) {
            const uint32_t signs = with_parity(word >> (7 * (k / 2)) & 127) >> (4 * (k % 2));
            put_point<Octal>(IQ3_XXS_VALUES, points[y[2 + 8 * s + k]], signs, scale, x);
        }
    }
}

// ---- IQ3_S: points' low bytes, their ninth bits, signs, scales

void write_iq3_s(const Found<IQ3_S_SPEC>& found, uint8_t* y) {
    uint8_t steps[8];
    super_scale(found, 1.033f, steps, y);
    std::memset(y + 2, 0, 104);
    uint8_t* low = y + 2;
    uint8_t* signs = y + 74;
    for (int s = 0; s < 8; ++s) {
        if (found.skipped[s]) {
            continue; // without advancing, as the reference: see _close_up in iq_lattice.py
        }
        for (int k = 0; k < 8; ++k) {
            low[k] = uint8_t(found.points[8 * s + k]);
            y[66 + s] |= uint8_t(found.points[8 * s + k] >> 8 << k);
        }
        std::memcpy(signs, found.signs + 4 * s, 4);
        low += 8;
        signs += 4;
    }
    put_nibbles<8>(steps, y + 106);
}

void read_iq3_s(const uint8_t* y, const uint16_t* points, float* x) {
    const float d = get_half(y);
    for (int k = 0; k < 64; ++k, x += 4) {
        const uint32_t point = y[2 + k] | (y[66 + k / 8] >> (k % 8) & 1) << 8;
        const float scale = d * float(1 + 2 * (y[106 + k / 16] >> (4 * (k / 8 % 2)) & 15));
        put_point<Octal>(IQ3_S_VALUES, points[point], uint32_t(y[74 + k / 2]) >> (4 * (k % 2)), scale, x);
    }
}

template <Spec S, int BYTES, auto WRITE, auto READ>
constexpr TypeKernels both() {
    return {quantize<S, BYTES, WRITE>, dequantize<S.grid, BYTES, READ>};
}

} // namespace

void add_iq_lattice(KernelTable& t) {
    t.type[IQ2_XXS] = both<IQ2_XXS_SPEC, bytes_of(IQ2_XXS), write_iq2_xxs, read_iq2_xxs>();
    t.type[IQ2_XS] = both<IQ2_XS_SPEC, bytes_of(IQ2_XS), write_iq2_xs, read_iq2_xs>();
    t.type[IQ2_S] = both<IQ2_S_SPEC, bytes_of(IQ2_S), write_iq2_s, read_iq2_s>();
    t.type[IQ3_XXS] = both<IQ3_XXS_SPEC, bytes_of(IQ3_XXS), write_iq3_xxs, read_iq3_xxs>();
    t.type[IQ3_S] = both<IQ3_S_SPEC, bytes_of(IQ3_S), write_iq3_s, read_iq3_s>();
}

} // namespace lg::LG_ISA
