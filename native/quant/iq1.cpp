// IQ1_S and IQ1_M; see src/loragraft/quants/iq1.py for the formats and the search.
//
// A lane is one of the cuts with the same lower end. The reference compares the cuts one by one, each with the best so
// far, by rounded products; so among cuts that are nearly as good as the best the order decides, and they are compared
// as there. All others are passed over: they may have led for a while, but never at the end.
#include "kernels.h"
#include "simd/half.h"
#include "quant/iq_snap.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

namespace lg::LG_ISA {
namespace {

constexpr float DELTA = 0.125f;
constexpr float UP[3] = {-1 + DELTA, DELTA, 1 + DELTA}, DOWN[3] = {-1 - DELTA, -DELTA, 1 - DELTA};

constexpr Values<Ternary> UP_VALUES{[](int q) { return UP[q]; }}, DOWN_VALUES{[](int q) { return DOWN[q]; }};

inline const Values<Ternary>& values_of(bool up) { return up ? UP_VALUES : DOWN_VALUES; }

inline void error_weights(const float* x, const float* importance, float* w) {
    if (!importance) {
        for (int j = 0; j < 256; ++j) {
            w[j] = x[j] * x[j];
        }
        return;
    }
    float sum = 0;
    for (int j = 0; j < 256; ++j) {
        sum += x[j] * x[j];
    }
    const float sigma2 = 2 * sum / 256;
    for (int j = 0; j < 256; ++j) {
        w[j] = importance[j] * std::sqrt(sigma2 + x[j] * x[j]);
    }
}

// order[r]: which of N weights is the r-th, counted from the least; equal ones keep their order.
template <int N>
inline void sort(const float* x, int32_t* order) {
    alignas(64) int32_t rank[N];
    for (int first = 0; first < N; first += LANES) {
        const vf v = load(x + first);
        const vi index = lane_numbers() + first;
        vi before{};
        for (int j = 0; j < N; ++j) {
            before -= (x[j] < v) | ((x[j] == v) & (j < index));
        }
        store(rank + first, before);
    }
    for (int j = 0; j < N; ++j) {
        order[rank[j]] = j;
    }
}

inline float largest_magnitude(const float* x, int n) {
    float largest = 0;
    for (int j = 0; j < n; ++j) {
        largest = std::max(largest, std::fabs(x[j]));
    }
    return largest;
}

// The best cut of a sub-block: weights below `low` in the order are -1, from `high` on 1.
struct Best {
    float score = -FLT_MAX, scale = 0;
    int low = -1, high = -1, shift = 0;

    void offer(float sumqx, float sumq2, int low_, int high_, int shift_) {
        if (sumq2 > 0 && sumqx * sumqx > score * sumq2) {
            scale = sumqx / sumq2;
            score = scale * sumqx;
            low = low_;
            high = high_;
            shift = shift_;
        }
    }

    template <int N>
    void digits(const int32_t* order, uint8_t* digit) const {
        for (int r = 0; r < N; ++r) {
            const int run = (r >= low) + (r >= high);
            digit[order[r]] = uint8_t(scale < 0 ? 2 - run : run);
        }
    }
};

// Every cut of N sorted weights with each of SHIFTS shifts.
template <int N, int SHIFTS>
struct Cuts {
    static constexpr int vectors(int low) { return (N + 1 - low + LANES - 1) / LANES; }
    static constexpr int all_vectors() {
        int n = 0;
        for (int low = 0; low <= N; ++low) {
            n += vectors(low);
        }
        return n;
    }

    struct Sums {
        vf qx[SHIFTS], q2[SHIFTS];
    };
    Sums sums[all_vectors()]; // in the order of (low, high); lanes beyond the last cut hold qx = 0

    // fill(low, high, sums): the sums of the cuts (low, high) to (low, high + LANES - 1). `total`: of all weights' weights.
    template <typename Fill>
    Best search(float total, Fill fill) {
        vf square[SHIFTS], weight[SHIFTS]; // in every lane, of the best cut seen: the largest square / weight
        for (int k = 0; k < SHIFTS; ++k) {
            square[k] = vf{};
            weight[k] = splat(1.0f);
        }
        Sums* at = sums;
        for (int low = 0; low <= N; ++low) {
            for (int high = low; high <= N; high += LANES, ++at) {
                fill(low, high, *at);
                const vi valid = lane_numbers() <= N - high;
                for (int k = 0; k < SHIFTS; ++k) {
                    at->qx[k] = floats(bits(at->qx[k]) & valid);
                    const vf s = at->qx[k] * at->qx[k];
                    const vi better = s * weight[k] > square[k] * at->q2[k];
                    square[k] = better ? s : square[k];
                    weight[k] = better ? at->q2[k] : weight[k];
                }
            }
        }
        vf largest{};
        for (int k = 0; k < SHIFTS; ++k) {
            largest = max(square[k] / weight[k], largest);
        }
        float most = 0;
        for (int i = 0; i < LANES; ++i) {
            most = most > largest[i] ? most : largest[i];
        }
        // No digit stands for less than 1/8, so every cut's sum of w q^2 is at least total / 64: within these bounds
        // nothing overflows, and what is close to the best is far from underflow.
        const bool safe = total > 1e-12f && total < 1e12f && most * total > 1e-24f && most * total < 1e24f;
        return safe ? compare(most * (1 - 0x1p-12f)) : compare(-FLT_MAX);
    }

    // The winner of the cuts whose score is at least `least`.
    Best compare(float least) const {
        Best best;
        const Sums* at = sums;
        for (int low = 0; low <= N; ++low) {
            for (int high = low; high <= N; high += LANES, ++at) {
                vi close{};
                for (int k = 0; k < SHIFTS; ++k) {
                    close |= at->qx[k] * at->qx[k] >= least * at->q2[k];
                }
                // Not a number is close to everything.
                for (int k = 0; k < SHIFTS; ++k) {
                    close |= at->q2[k] != at->q2[k];
                }
                if (!any(close)) {
                    continue;
                }
                for (int i = 0; i < LANES && high + i <= N; ++i) {
                    for (int k = 0; k < SHIFTS && close[i]; ++k) {
                        best.offer(at->qx[k][i], at->q2[k][i], low, high + i, k);
                    }
                }
            }
        }
        return best;
    }
};

// ---- Digits to points

template <int SUB>
struct Points {
    static constexpr int GROUPS = SUB / 8;
    uint32_t codes[GROUPS];
    float scale;
};

// The sums of w q x and w q^2, on top of what they hold; `factor` multiplies every q.
template <int SUB>
inline void add_products(const uint32_t* codes, const float* x, const float* w, const Values<Ternary>* const* values,
                         float factor, float& sumqx, float& sumq2) {
    for (int j = 0; j < SUB; ++j) {
        const float q = values[j / 8]->v[Ternary::digit(codes[j / 8], j % 8)] * factor;
        sumqx += w[j] * q * x[j];
        sumq2 += w[j] * q * q;
    }
}

template <int SUB>
inline Points<SUB> snap(const IqGrid& grid, const uint8_t* digit, const float* x, const float* w, float scale,
                        const Values<Ternary>* const* values) {
    Points<SUB> points;
    bool all_on_grid = true;
    for (int k = 0; k < Points<SUB>::GROUPS; ++k) {
        int number = 0;
        for (int i = 7; i >= 0; --i) {
            number = 3 * number + digit[8 * k + i];
        }
        all_on_grid &= grid.point[size_t(number)] >= 0;
        Group<Ternary> group;
        group.set(x + 8 * k, w + 8 * k);
        points.codes[k] = snap_one<Ternary>(grid, number, group, *values[k], scale);
    }
    if (!all_on_grid) {
        float sumqx = 0, sumq2 = 0;
        add_products<SUB>(points.codes, x, w, values, 1.0f, sumqx, sumq2);
        if (sumqx > 0 && sumq2 > 0) {
            scale = sumqx / sumq2;
        }
    }
    points.scale = scale >= 0 ? scale : 0.0f; // the reference stops at NaN
    return points;
}

inline uint32_t point_of(const IqGrid& grid, uint32_t code) {
    return uint32_t(grid.point[size_t(grid.number_of(code))]);
}

// Three-bit steps of the scales; returns a fifteenth of the largest, 0 if all are.
template <int SUBS>
inline float scale_steps(const float* scales, int* steps) {
    float largest = 0;
    for (int s = 0; s < SUBS; ++s) {
        largest = std::max(largest, scales[s]);
    }
    const float d = largest / 15.0f;
    const float inverse = 1.0f / d;
    for (int s = 0; s < SUBS; ++s) {
        const float v = 0.5f * (inverse * scales[s] - 1.0f);
        const int step = (std::bit_cast<int32_t>(v + 12582912.0f) & 0x7FFFFF) - 0x400000;
        steps[s] = std::clamp(step, 0, 7);
    }
    return largest == 0 ? 0.0f : d;
}

inline void put_16(uint8_t* y, uint32_t v) {
    const uint16_t word = uint16_t(v);
    std::memcpy(y, &word, 2);
}

inline uint32_t get_16(const uint8_t* y) {
    uint16_t word;
    std::memcpy(&word, y, 2);
    return word;
}

// ---- IQ1_S: d, points' low bytes, then per 32 weights four times three high bits, the scale and the shift's sign

Best search_32(const float* x, const float* w, const int32_t* order) {
    // Prefix sums; beyond the last, whatever keeps the arithmetic quiet.
    alignas(64) float sx[33 + LANES]{}, sw[33 + LANES]{};
    for (int r = 0; r < 32; ++r) {
        const int j = order[r];
        sx[r + 1] = sx[r] + w[j] * x[j];
        sw[r + 1] = sw[r] + w[j];
    }
    Cuts<32, 2> cuts;
    return cuts.search(sw[32], [&](int low, int high, auto& sums) {
        const float x1 = sx[low] - sx[0], w1 = sw[low] - sw[0];
        const vf x2 = load(sx + high) - sx[low], x3 = sx[32] - load(sx + high);
        const vf w2 = load(sw + high) - sw[low], w3 = sw[32] - load(sw + high);
        int k = 0;
        for (const float* v : {UP, DOWN}) {
            sums.qx[k] = x1 * v[0] + x2 * v[1] + x3 * v[2];
            sums.q2[k] = w1 * v[0] * v[0] + w2 * v[1] * v[1] + w3 * v[2] * v[2];
            ++k;
        }
    });
}

void iq1_s_block(const IqGrid& grid, const float* x, const float* importance, uint8_t* y) {
    std::memset(y, 0, 50);
    alignas(64) float w[256];
    error_weights(x, importance, w);
    float scales[8]{};
    bool down[8]{};
    uint32_t high_bits[8]{};
    for (int s = 0; s < 8; ++s) {
        const float* xs = x + 32 * s;
        const float* ws = w + 32 * s;
        if (largest_magnitude(xs, 32) < 1e-12f) {
            continue;
        }
        int32_t order[32];
        sort<32>(xs, order);
        const Best best = search_32(xs, ws, order);
        if (best.low < 0) {
            continue;
        }
        uint8_t digit[32];
        best.digits<32>(order, digit);
        down[s] = (best.shift == 1) != (best.scale < 0);
        const Values<Ternary>* v = &values_of(!down[s]);
        const Values<Ternary>* const values[4] = {v, v, v, v};
        const Points<32> points = snap<32>(grid, digit, xs, ws, std::fabs(best.scale), values);
        scales[s] = points.scale;
        for (int k = 0; k < 4; ++k) {
            const uint32_t point = point_of(grid, points.codes[k]);
            y[2 + 4 * s + k] = uint8_t(point);
            high_bits[s] |= point >> 8 << (3 * k);
        }
    }
    int steps[8];
    const float d = scale_steps<8>(scales, steps);
    if (d != 0) {
        put_16(y, half_from_result(d * 1.125f));
    }
    const bool some = *std::max_element(scales, scales + 8) != 0;
    for (int s = 0; s < 8; ++s) {
        const uint32_t scale = some ? uint32_t(steps[s] | down[s] << 3) : 0;
        put_16(y + 34 + 2 * s, high_bits[s] | scale << 12);
    }
}

void iq1_s_back(const uint16_t* points, const uint8_t* y, float* x) {
    const float d = float_from_half(uint16_t(get_16(y)));
    for (int s = 0; s < 8; ++s) {
        const uint32_t qh = get_16(y + 34 + 2 * s);
        const float scale = d * float(2 * (qh >> 12 & 7) + 1);
        const float delta = qh & 0x8000 ? -DELTA : DELTA;
        for (int k = 0; k < 4; ++k, x += 8) {
            const uint32_t code = points[y[2 + 4 * s + k] | (qh >> (3 * k) & 7) << 8];
            for (int i = 0; i < 8; ++i) {
                x[i] = scale * (float(int(code >> (2 * i) & 3) - 1) + delta);
            }
        }
    }
}

// ---- IQ1_M: points' low bytes, per 8 weights three high bits and the shift's sign, the scales with d in their top bits

// Shifts: 0 both halves up, 1 up and down, 2 down and up, 3 both down.
Best search_16(const float* x, const float* w, const int32_t* order) {
    alignas(64) float px[2][17 + LANES]{}, pw[2][17 + LANES]{}; // prefix sums of each half's weights
    for (int r = 0; r < 16; ++r) {
        const int j = order[r], h = j / 8;
        px[h][r + 1] = px[h][r] + w[j] * x[j];
        pw[h][r + 1] = pw[h][r] + w[j];
        px[1 - h][r + 1] = px[1 - h][r];
        pw[1 - h][r + 1] = pw[1 - h][r];
    }
    Cuts<16, 4> cuts;
    return cuts.search(pw[0][16] + pw[1][16], [&](int low, int high, auto& sums) {
        vf qx[2][2], q2[2][2]; // [shift][half]
        for (int h = 0; h < 2; ++h) {
            const vf sum_x = px[h][low] + load(px[h] + high);
            const vf high_w = load(pw[h] + high);
            const auto square = [&](const float* v) {
                return pw[h][16] * v[2] * v[2] + pw[h][low] * (v[0] * v[0] - v[1] * v[1])
                    + high_w * (v[1] * v[1] - v[2] * v[2]);
            };
            qx[0][h] = px[h][16] * UP[2] - sum_x;
            qx[1][h] = px[h][16] * DOWN[2] - sum_x;
            q2[0][h] = square(UP);
            q2[1][h] = square(DOWN);
        }
        for (int k = 0; k < 4; ++k) {
            sums.qx[k] = qx[k / 2][0] + qx[k % 2][1];
            sums.q2[k] = q2[k / 2][0] + q2[k % 2][1];
        }
    });
}

void iq1_m_block(const IqGrid& grid, const float* x, const float* importance, uint8_t* y) {
    std::memset(y, 0, 56);
    alignas(64) float w[256];
    error_weights(x, importance, w);
    float scales[16]{};
    int shift[16]{};
    uint32_t codes[16][2];
    for (int s = 0; s < 16; ++s) {
        codes[s][0] = codes[s][1] = grid.points[0];
        const float* xs = x + 16 * s;
        const float* ws = w + 16 * s;
        if (largest_magnitude(xs, 16) < 1e-7f) {
            continue;
        }
        int32_t order[16];
        sort<16>(xs, order);
        const Best best = search_16(xs, ws, order);
        if (best.low < 0) {
            continue;
        }
        uint8_t digit[16];
        best.digits<16>(order, digit);
        shift[s] = best.scale < 0 ? 3 - best.shift : best.shift;
        const Values<Ternary>* const values[2] = {&values_of(shift[s] < 2), &values_of(shift[s] % 2 == 0)};
        const Points<16> points = snap<16>(grid, digit, xs, ws, std::fabs(best.scale), values);
        scales[s] = points.scale;
        uint32_t point[2];
        for (int k = 0; k < 2; ++k) {
            codes[s][k] = points.codes[k];
            point[k] = point_of(grid, points.codes[k]);
            y[2 * s + k] = uint8_t(point[k]);
        }
        y[32 + s] = uint8_t(point[0] >> 8 | point[1] >> 8 << 4);
    }
    if (*std::max_element(scales, scales + 16) == 0) {
        return;
    }
    int steps[16];
    float d = scale_steps<16>(scales, steps);
    float sumqx = 0, sumq2 = 0;
    uint32_t packed[4]{};
    for (int s = 0; s < 16; ++s) {
        constexpr uint8_t MASKS[4] = {0x00, 0x80, 0x08, 0x88};
        y[32 + s] |= MASKS[shift[s]];
        packed[s / 4] |= uint32_t(steps[s]) << (3 * (s % 4));
        const Values<Ternary>* const values[2] = {&values_of(shift[s] < 2), &values_of(shift[s] % 2 == 0)};
        add_products<16>(codes[s], x + 16 * s, w + 16 * s, values, float(2 * steps[s] + 1), sumqx, sumq2);
    }
    if (sumq2 > 0) {
        d = sumqx / sumq2;
    }
    const uint32_t half = half_from_result(d * 1.1125f);
    for (int k = 0; k < 4; ++k) {
        put_16(y + 48 + 2 * k, packed[k] | (half >> (4 * k) & 15) << 12);
    }
}

void iq1_m_back(const uint16_t* points, const uint8_t* y, float* x) {
    uint32_t half = 0;
    for (int k = 0; k < 4; ++k) {
        half |= get_16(y + 48 + 2 * k) >> 12 << (4 * k);
    }
    const float d = float_from_half(uint16_t(half));
    for (int k = 0; k < 32; ++k, x += 8) {
        const uint32_t step = get_16(y + 48 + 2 * (k / 8)) >> (3 * (k / 2 % 4)) & 7;
        const float scale = d * float(2 * step + 1);
        const uint32_t qh = y[32 + k / 2] >> (4 * (k % 2));
        const float delta = qh & 8 ? -DELTA : DELTA;
        const uint32_t code = points[y[k] | (qh & 7) << 8];
        for (int i = 0; i < 8; ++i) {
            x[i] = scale * (float(int(code >> (2 * i) & 3) - 1) + delta);
        }
    }
}

template <auto BLOCK, int BYTES>
void quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    const IqGrid& grid = iq_grid(IqGridName::IQ1, LANES);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t c = 0; c < cols; c += 256, x += 256, y += BYTES) {
            BLOCK(grid, x, importance ? importance + c : nullptr, y);
        }
    }
}

template <auto BLOCK, int BYTES>
void dequantize(const uint8_t* y, float* x, int64_t n) {
    const uint16_t* points = iq_grid(IqGridName::IQ1, LANES).points.data();
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += BYTES) {
        BLOCK(points, y, x);
    }
}

} // namespace

void add_iq1(KernelTable& t) {
    t.type[IQ1_S] = {quantize<iq1_s_block, bytes_of(IQ1_S)>, dequantize<iq1_s_back, bytes_of(IQ1_S)>};
    t.type[IQ1_M] = {quantize<iq1_m_block, bytes_of(IQ1_M)>, dequantize<iq1_m_back, bytes_of(IQ1_M)>};
}

} // namespace lg::LG_ISA
