// Panels: some rows of weights as 8-bit codes in an order in which many columns of activations sweep over them.
#pragma once

#include <algorithm>

#include "engine/codes.h"
#include "engine/epilogue.h"
#include "engine/scratch.h"

namespace lg::LG_ISA {

constexpr int ROWS = int(LINEAR_ROWS);
constexpr int DEPTH = MAX_BLOCK;

// ROWS rows of DEPTH weights (or fewer): codes by fours, row by row within them; scales and mins row by row.
struct Panel {
    alignas(64) int32_t codes[DEPTH / 4][ROWS];
    alignas(64) float scale[DEPTH / 16][ROWS];
    alignas(64) float min[DEPTH / 16][ROWS];
};

// What the product must know of a panel's codes: weight = scale * (code - Offset) + min.
template <int Sub, bool Min, bool Signed, int32_t Offset> struct PanelFormat {
    static constexpr int SUB = Sub;
    static constexpr bool MIN = Min, SIGNED = Signed;
    static constexpr int32_t OFFSET = Offset;
};

// What C columns of activations give to one panel.
template <int C> struct Columns {
    const int8_t* codes[C];
    const float* d[C];
    const int32_t* sum[C];
    const float* dsum[C];
};

// RV vectors of rows by C columns over a panel's depth; acc is [C][ROWS].
template <class F, int RV, int C>
inline void tile(const Panel& p, int row, int depth, const Columns<C>& x, float* acc) {
    vf total[RV][C];
    for (int c = 0; c < C; ++c) {
        for (int r = 0; r < RV; ++r) {
            total[r][c] = load(acc + c * ROWS + row + r * LANES);
        }
    }
    for (int run = 0; run < depth / 32; ++run) {
        vf part[RV][C];
        // Unrolled, or GCC 12 spills accumulators.
#pragma GCC unroll 2
        for (int i = 0; i < 32 / F::SUB; ++i) {
            const int s = run * (32 / F::SUB) + i;
            vi dots[RV][C];
            for (int c = 0; c < C; ++c) {
                const int32_t start = F::OFFSET ? -F::OFFSET * x.sum[c][s] : 0;
                for (int r = 0; r < RV; ++r) {
                    dots[r][c] = start - vi{};
                }
            }
#pragma GCC unroll 8
            for (int word = 0; word < F::SUB / 4; ++word) {
                const int j = s * (F::SUB / 4) + word;
                vi w[RV];
                for (int r = 0; r < RV; ++r) {
                    std::memcpy(&w[r], p.codes[j] + row + r * LANES, sizeof w[r]);
                }
                for (int c = 0; c < C; ++c) {
                    int32_t four;
                    std::memcpy(&four, x.codes[c] + 4 * j, 4);
                    for (int r = 0; r < RV; ++r) {
                        dots[r][c] = dot_lanes<F::SIGNED>(dots[r][c], w[r], four);
                    }
                }
            }
            for (int r = 0; r < RV; ++r) {
                const vf scale = load(p.scale[s] + row + r * LANES);
                for (int c = 0; c < C; ++c) {
                    const vf value = __builtin_convertvector(dots[r][c], vf);
                    part[r][c] = i == 0 ? value * scale : fma(value, scale, part[r][c]);
                }
                if constexpr (F::MIN) {
                    const vf min = load(p.min[s] + row + r * LANES);
                    for (int c = 0; c < C; ++c) {
                        total[r][c] = fma(min, splat(x.dsum[c][s]), total[r][c]);
                    }
                }
            }
        }
        for (int c = 0; c < C; ++c) {
            const vf d = splat(x.d[c][run]);
            for (int r = 0; r < RV; ++r) {
                total[r][c] = fma(part[r][c], d, total[r][c]);
            }
        }
    }
    for (int c = 0; c < C; ++c) {
        for (int r = 0; r < RV; ++r) {
            store(acc + c * ROWS + row + r * LANES, total[r][c]);
        }
    }
}

template <class F, int C>
void tiles(const Linear& l, const Panel& p, int64_t k, int depth, int64_t t, float* acc) {
    Columns<C> x;
    for (int c = 0; c < C; ++c) {
        const int64_t row = x_row(l, t + c);
        x.codes[c] = l.x.codes + row * l.cols + k;
        x.d[c] = l.x.d + (row * l.cols + k) / 32;
        x.sum[c] = (F::SUB == 16 ? l.x.sum16 : l.x.sum32) + (row * l.cols + k) / F::SUB;
        x.dsum[c] = (F::SUB == 16 ? l.x.dsum16 : l.x.dsum32) + (row * l.cols + k) / F::SUB;
    }
    constexpr int RV = 2;
    for (int row = 0; row < ROWS; row += RV * LANES) {
        tile<F, RV, C>(p, row, depth, x, acc + t * ROWS);
    }
}

template <class F>
void sweep(const Linear& l, const Panel& p, int64_t k, int depth, float* acc) {
    constexpr int C = LANES == 16 ? 4 : 2;
    int64_t t = 0;
    for (; t + C <= l.columns; t += C) {
        tiles<F, C>(l, p, k, depth, t, acc);
    }
    for (; t < l.columns; ++t) {
        tiles<F, 1>(l, p, k, depth, t, acc);
    }
}

// Many columns: fill(row, k, depth, panel) makes one panel of codes after the other, each swept over all columns.
template <class F, class Fill> void sweep_panels(const Linear& l, int64_t first, int64_t last, Fill fill) {
    thread_local static Scratch<float> memory;
    thread_local static Scratch<Panel> panels;
    float* acc = memory.get(l.columns * ROWS);
    Panel& p = *panels.get(1);
    for (int64_t row = first; row < last; row += ROWS) {
        std::fill_n(acc, l.columns * ROWS, 0.0f);
        for (int64_t k = 0; k < l.cols; k += DEPTH) {
            const int depth = int(std::min<int64_t>(DEPTH, l.cols - k));
            fill(row, k, depth, p);
            sweep<F>(l, p, k, depth, acc);
        }
        for (int64_t t = 0; t < l.columns; ++t) {
            for (int64_t r = 0; r < ROWS && row + r < last; r += 16) {
                finish16(l, t, row + r, acc + t * ROWS + r);
            }
        }
    }
}

} // namespace lg::LG_ISA
