// Products with float activations: float weights directly, quantized ones dequantized a few rows at a time.
#include "engine/epilogue.h"
#include "kernels.h"
#include "engine/scratch.h"

#include <algorithm>

namespace lg::LG_ISA {

namespace {

constexpr int64_t PANEL_ROWS = LINEAR_ROWS;
constexpr int64_t DEPTH = 256; // a multiple of every type's block

// Weights [k, k + n) of a row, as floats: straight from the row, or through `buffer`.
inline const float* weights(const Linear& l, int64_t row, int64_t k, int64_t n, float* buffer) {
    const uint8_t* p = l.weight + row * l.row_bytes;
    if (l.type == F32) {
        return reinterpret_cast<const float*>(p) + k;
    }
    const TypeKernels& type = kernels().type[l.type];
    type.dequantize(p + k / type.block * type.bytes, buffer, n);
    return buffer;
}

// How float weights are read straight from a row: LANES of them, and the one at i.
struct Singles {
    static constexpr int BYTES = 4;
    static inline vf lanes(const uint8_t* p) { return load((const float*)p); }
    static inline float one(const uint8_t* p) {
        float v;
        std::memcpy(&v, p, 4);
        return v;
    }
};
struct Halves {
    static constexpr int BYTES = 2;
    static inline vf lanes(const uint8_t* p) { return load_half(p); }
    static inline float one(const uint8_t* p) { return half_at(p); }
};
struct Bfloats {
    static constexpr int BYTES = 2;
    static inline vf lanes(const uint8_t* p) { return load_bfloat(p); }
    static inline float one(const uint8_t* p) {
        uint16_t b;
        std::memcpy(&b, p, 2);
        return float_from_bfloat(b);
    }
};

constexpr int CHAINS = 4; // sums that do not wait for each other

// w[i] * x[c][i] added into lanes; the tail goes to lane 0.
template <class W, int C> inline void dot(const uint8_t* w, const float* const* x, int64_t n, vf (*acc)[CHAINS]) {
    int64_t i = 0;
    for (; i + CHAINS * LANES <= n; i += CHAINS * LANES) {
        for (int j = 0; j < CHAINS; ++j) {
            const vf v = W::lanes(w + (i + j * LANES) * W::BYTES);
            for (int c = 0; c < C; ++c) {
                acc[c][j] = fma(v, load(x[c] + i + j * LANES), acc[c][j]);
            }
        }
    }
    for (; i < n; ++i) {
        const float v = W::one(w + i * W::BYTES);
        for (int c = 0; c < C; ++c) {
            acc[c][0][0] += v * x[c][i];
        }
    }
}

// C columns of rows [first, last), row by row: for a few tokens, where reading the weights is what takes the time.
template <int C> void few(const Linear& l, int64_t first, int64_t last, int64_t t) {
    alignas(64) float buffer[DEPTH];
    const float* x[C];
    for (int c = 0; c < C; ++c) {
        x[c] = l.x.x + x_row(l, t + c) * l.cols;
    }
    for (int64_t row = first; row < last; row += 16) {
        prefetch_epilogue(l, row);
        float product[C][16] = {};
        for (int64_t r = 0; r < 16 && row + r < last; ++r) {
            vf acc[C][CHAINS] = {};
            const uint8_t* w = l.weight + (row + r) * l.row_bytes;
            switch (l.type) {
            case F32: dot<Singles, C>(w, x, l.cols, acc); break;
            case F16: dot<Halves, C>(w, x, l.cols, acc); break;
            case BF16: dot<Bfloats, C>(w, x, l.cols, acc); break;
            default:
                for (int64_t k = 0; k < l.cols; k += DEPTH) {
                    const int64_t n = std::min(DEPTH, l.cols - k);
                    const float* at[C];
                    for (int c = 0; c < C; ++c) {
                        at[c] = x[c] + k;
                    }
                    dot<Singles, C>((const uint8_t*)weights(l, row + r, k, n, buffer), at, n, acc);
                }
            }
            for (int c = 0; c < C; ++c) {
                product[c][r] = sum((acc[c][0] + acc[c][1]) + (acc[c][2] + acc[c][3]));
            }
        }
        for (int c = 0; c < C; ++c) {
            finish16(l, t + c, row, product[c]);
        }
    }
}

// A panel: PANEL_ROWS rows, `depth` columns, transposed to [depth][PANEL_ROWS].
void transpose_panel(const Linear& l, int64_t row, int64_t k, int64_t depth, float* panel) {
    alignas(64) float buffer[4][DEPTH];
    for (int64_t r = 0; r < PANEL_ROWS; r += 4) {
        const float* w[4];
        for (int i = 0; i < 4; ++i) {
            if (row + r + i < l.rows) {
                w[i] = weights(l, row + r + i, k, depth, buffer[i]);
            } else {
                std::fill_n(buffer[i], depth, 0.0f);
                w[i] = buffer[i];
            }
        }
        transpose4(w, depth, panel + r, PANEL_ROWS);
    }
}

// RV vectors of rows by C columns, over one panel's depth; `acc` is [columns][PANEL_ROWS].
template <int RV, int C>
inline void tile(const float* panel, int64_t depth, const float* const* x, float* acc) {
    vf a[RV][C];
    for (int c = 0; c < C; ++c) {
        for (int r = 0; r < RV; ++r) {
            a[r][c] = load(acc + c * PANEL_ROWS + r * LANES);
        }
    }
    for (int64_t j = 0; j < depth; ++j) {
        vf w[RV];
        for (int r = 0; r < RV; ++r) {
            w[r] = load(panel + j * PANEL_ROWS + r * LANES);
        }
        for (int c = 0; c < C; ++c) {
            const vf b = splat(x[c][j]);
            for (int r = 0; r < RV; ++r) {
                a[r][c] = fma(w[r], b, a[r][c]);
            }
        }
    }
    for (int c = 0; c < C; ++c) {
        for (int r = 0; r < RV; ++r) {
            store(acc + c * PANEL_ROWS + r * LANES, a[r][c]);
        }
    }
}

template <int C>
void tiles(const Linear& l, const float* panel, int64_t k, int64_t depth, int64_t t, float* acc) {
    const float* x[C];
    for (int c = 0; c < C; ++c) {
        x[c] = l.x.x + x_row(l, t + c) * l.cols + k;
    }
    constexpr int RV = 2;
    for (int r = 0; r < PANEL_ROWS; r += RV * LANES) {
        tile<RV, C>(panel + r, depth, x, acc + t * PANEL_ROWS + r);
    }
}

// Many columns: panels of weights are dequantized once and swept over all columns.
void many(const Linear& l, int64_t first, int64_t last) {
    thread_local static Scratch<float> acc_memory, panel_memory;
    float* panel = panel_memory.get(DEPTH * PANEL_ROWS);
    float* acc = acc_memory.get(l.columns * PANEL_ROWS);
    for (int64_t row = first; row < last; row += PANEL_ROWS) {
        std::fill_n(acc, l.columns * PANEL_ROWS, 0.0f);
        for (int64_t k = 0; k < l.cols; k += DEPTH) {
            const int64_t depth = std::min(DEPTH, l.cols - k);
            transpose_panel(l, row, k, depth, panel);
            int64_t t = 0;
            for (; t + 4 <= l.columns; t += 4) {
                tiles<4>(l, panel, k, depth, t, acc);
            }
            for (; t < l.columns; ++t) {
                tiles<1>(l, panel, k, depth, t, acc);
            }
        }
        for (int64_t t = 0; t < l.columns; ++t) {
            for (int64_t r = 0; r < PANEL_ROWS && row + r < last; r += 16) {
                finish16(l, t, row + r, acc + t * PANEL_ROWS + r);
            }
        }
    }
}

void linear_f32(const Linear& l, int64_t first, int64_t last) {
    constexpr int64_t FEW = 4;
    if (l.columns > FEW) {
        many(l, first, last);
        return;
    }
    switch (l.columns) {
    case 1: few<1>(l, first, last, 0); break;
    case 2: few<2>(l, first, last, 0); break;
    case 3: few<3>(l, first, last, 0); break;
    case 4: few<4>(l, first, last, 0); break;
    }
}

void to_floats(int type, const uint8_t* row, float* y, int64_t n) {
    Linear l;
    l.weight = row;
    l.type = type;
    for (int64_t k = 0; k < n; k += DEPTH) {
        const int64_t m = std::min(DEPTH, n - k);
        const float* w = weights(l, 0, k, m, y + k);
        if (w != y + k) {
            std::memcpy(y + k, w, size_t(m) * 4);
        }
    }
}

} // namespace

void add_linear_f32(KernelTable& k) {
    k.engine.linear_f32 = linear_f32;
    k.engine.to_floats = to_floats;
}

} // namespace lg::LG_ISA
