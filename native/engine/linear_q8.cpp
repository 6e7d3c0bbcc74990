// Products of quantized weights with 8-bit activations, in integers within each run of weights that shares a scale.
// Written once over the types of codes.h: row by row for a few columns, where reading the weights is what takes the
// time; by panels of rows for many, where the multiplications are.
#include "kernels.h"
#include "engine/panel.h"

namespace lg::LG_ISA {

namespace {

// ---- a few columns ----

template <int SUB> inline f32x8 spread(const float* scale, int k) {
    if constexpr (SUB == 32) {
        return scale[k] - f32x8{};
    } else {
        typedef float f4 __attribute__((vector_size(16)));
        const f4 low = scale[2 * k] - f4{}, high = scale[2 * k + 1] - f4{};
        return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
}

// One row of weights with C columns of activations.
template <class T, int C> struct RowDot {
    static constexpr int RUNS = T::BLOCK / 32, SUBS = T::BLOCK / T::SUB;
    static constexpr int CHAINS = 4 / C > 0 ? 4 / C : 1; // sums that do not wait for each other
    static constexpr int UNROLL = CHAINS > RUNS ? CHAINS / RUNS : 1;

    const int8_t* codes[C];
    const float *d[C], *dsum[C];
    f32x8 acc[C][CHAINS] = {};
    f32x8 min_lanes[C] = {};
    float min_rest[C] = {};

    RowDot(const Linear& l, const int64_t* x_rows) {
        for (int c = 0; c < C; ++c) {
            codes[c] = l.x.codes + x_rows[c] * l.cols;
            d[c] = l.x.d + x_rows[c] * (l.cols / 32);
            dsum[c] = (T::SUB == 16 ? l.x.dsum16 : l.x.dsum32) + x_rows[c] * (l.cols / T::SUB);
        }
    }

    // Adds block b, which lies at w.
    inline void add(const uint8_t* w, int64_t b, int chain) {
        i8x32 q[RUNS];
        float scale[SUBS], min[SUBS];
        T::decode(w, q, scale, min);
        for (int c = 0; c < C; ++c) {
            float both[SUBS];
            scale_by_activations(scale, d[c] + b * RUNS, both);
            for (int k = 0; k < RUNS; ++k) {
                const i8x32 x = load_i8(codes[c] + b * T::BLOCK + 32 * k);
                f32x8& sum = acc[c][(chain + k) % CHAINS];
                sum = fma8(float8(dot32<T::SIGNED>(i32x8{}, q[k], x)), spread<T::SUB>(both, k), sum);
            }
            if constexpr (T::MIN && SUBS % 8 == 0) {
                for (int s = 0; s < SUBS; s += 8) {
                    min_lanes[c] = fma8(load8(min + s), load8(dsum[c] + b * SUBS + s), min_lanes[c]);
                }
            } else if constexpr (T::MIN) {
                for (int s = 0; s < SUBS; ++s) {
                    min_rest[c] += min[s] * dsum[c][b * SUBS + s];
                }
            }
        }
    }

    static inline void scale_by_activations(const float* scale, const float* d, float* both) {
        if constexpr (SUBS == 8) {
            const f32x8 v = load8(scale) * load8(d);
            std::memcpy(both, &v, 32);
        } else {
            for (int s = 0; s < SUBS; ++s) {
                both[s] = scale[s] * d[s * T::SUB / 32];
            }
        }
        // Kept in memory on purpose: from there each is broadcast for nothing, as an operand.
        asm("" : "+m"(*(float(*)[SUBS])both));
    }

    inline void finish(float* y) const {
        for (int c = 0; c < C; ++c) {
            f32x8 total = acc[c][0];
            for (int i = 1; i < CHAINS; ++i) {
                total += acc[c][i];
            }
            y[c] = sum8(total);
            if constexpr (T::MIN) {
                y[c] += sum8(min_lanes[c]) + min_rest[c];
            }
        }
    }
};

template <class T, int C> inline void dot_row(const Linear& l, const uint8_t* w, const int64_t* x_rows, float* y) {
    using Dot = RowDot<T, C>;
    Dot dot(l, x_rows);
    const int64_t blocks = l.cols / T::BLOCK;
    int64_t b = 0;
    for (; b + Dot::UNROLL <= blocks; b += Dot::UNROLL) {
        for (int u = 0; u < Dot::UNROLL; ++u) {
            dot.add(w + (b + u) * T::BYTES, b + u, u * Dot::RUNS);
        }
    }
    for (; b < blocks; ++b) {
        dot.add(w + b * T::BYTES, b, 0);
    }
    dot.finish(y);
}

template <class T, int C> void few(const Linear& l, int64_t first, int64_t last, int64_t t) {
    int64_t x_rows[C];
    for (int c = 0; c < C; ++c) {
        x_rows[c] = x_row(l, t + c);
    }
    for (int64_t row = first; row < last; row += 16) {
        prefetch_epilogue(l, row);
        float product[C][16] = {};
        for (int64_t r = 0; r < 16 && row + r < last; ++r) {
            float y[C];
            dot_row<T, C>(l, l.weight + (row + r) * l.row_bytes, x_rows, y);
            for (int c = 0; c < C; ++c) {
                product[c][r] = y[c];
            }
        }
        for (int c = 0; c < C; ++c) {
            finish16(l, t + c, row, product[c]);
        }
    }
}

// ---- many columns ----

template <class T> void fill_panel(const Linear& l, int64_t row, int64_t k, int depth, Panel& p) {
    alignas(64) i8x32 codes[4][DEPTH / 32];
    for (int r = 0; r < ROWS; r += 4) {
        for (int i = 0; i < 4; ++i) {
            float scale[DEPTH / T::SUB] = {}, min[DEPTH / T::SUB] = {};
            if (row + r + i < l.rows) {
                const uint8_t* w = l.weight + (row + r + i) * l.row_bytes + k / T::BLOCK * T::BYTES;
                for (int b = 0; b < depth / T::BLOCK; ++b, w += T::BYTES) {
                    constexpr int SUBS = T::BLOCK / T::SUB;
                    T::decode(w, codes[i] + b * (T::BLOCK / 32), scale + b * SUBS, min + b * SUBS);
                }
            } else {
                std::fill_n(codes[i], DEPTH / 32, i8x32{});
            }
            for (int j = 0; j < depth / 32; ++j) {
                codes[i][j] = panel_code<T::SIGNED>(codes[i][j]);
            }
            for (int s = 0; s < depth / T::SUB; ++s) {
                p.scale[s][r + i] = scale[s];
                if constexpr (T::MIN) {
                    p.min[s][r + i] = min[s];
                }
            }
        }
        const float* words[4] = {(const float*)codes[0], (const float*)codes[1], (const float*)codes[2],
                                 (const float*)codes[3]};
        transpose4(words, depth / 4, (float*)p.codes[0] + r, ROWS);
    }
}

template <class T> void linear(const Linear& l, int64_t first, int64_t last) {
    static_assert(DEPTH % T::BLOCK == 0 && T::BLOCK % 32 == 0 && (T::SUB == 16 || T::SUB == 32));
    constexpr int64_t FEW = 8;
    if (l.columns > FEW) {
        using Format = PanelFormat<T::SUB, T::MIN, T::SIGNED, PANEL_OFFSET<T::SIGNED>>;
        sweep_panels<Format>(l, first, last, [&l](int64_t row, int64_t k, int depth, Panel& p) {
            fill_panel<T>(l, row, k, depth, p);
        });
        return;
    }
    int64_t t = 0;
    for (; t + 4 <= l.columns; t += 4) {
        few<T, 4>(l, first, last, t);
    }
    for (; t + 2 <= l.columns; t += 2) {
        few<T, 2>(l, first, last, t);
    }
    if (t < l.columns) {
        few<T, 1>(l, first, last, t);
    }
}

} // namespace

void add_linear_q8(KernelTable& k) {
    LinearKernel* by_type = k.engine.linear_q8;
    by_type[Q4_0] = linear<Q4_0Codes>;
    by_type[Q4_1] = linear<Q4_1Codes>;
    by_type[Q5_0] = linear<Q5_0Codes>;
    by_type[Q5_1] = linear<Q5_1Codes>;
    by_type[Q8_0] = linear<Q8_0Codes>;
    by_type[Q2_K] = linear<Q2_KCodes>;
    by_type[Q3_K] = linear<Q3_KCodes>;
    by_type[Q4_K] = linear<Q4_KCodes>;
    by_type[Q5_K] = linear<Q5_KCodes>;
    by_type[Q6_K] = linear<Q6_KCodes>;
    by_type[IQ4_NL] = linear<IQ4_NLCodes>;
    by_type[IQ4_XS] = linear<IQ4_XSCodes>;
    by_type[MXFP4] = linear<MXFP4Codes>;
    by_type[NVFP4] = linear<NVFP4Codes>;
    by_type[TQ2_0] = linear<TQ2_0Codes>;
}

} // namespace lg::LG_ISA
