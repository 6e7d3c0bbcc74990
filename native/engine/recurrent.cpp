// Recurrent layers: the short convolution, and the scan of linear attention (gated delta rule, Mamba-2). A scan goes token
// by token, whatever the batch: every sum runs over the key's elements in one order, so a prompt read at once, in pieces or
// one by one has the same bits. It is fast because a task keeps a few columns of the state in the first-level cache for all
// its tokens; vectors run along the columns, which never meet.
#include "kernels.h"
#include "simd/simd.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lg::LG_ISA {

namespace {

// LANES floats, of which `n` are there; the others are 0.
inline vf load_some(const float* p, int64_t n) {
    if (n >= LANES) {
        return load(p);
    }
    float part[LANES] = {};
    if (n > 0) {
        std::memcpy(part, p, size_t(n) * 4);
    }
    return load(part);
}

inline void store_some(float* p, vf v, int64_t n) {
    if (n >= LANES) {
        store(p, v);
    } else if (n > 0) {
        float part[LANES];
        store(part, v);
        std::memcpy(p, part, size_t(n) * 4);
    }
}

// y[c] = bias[c] + sum over j of w[j][c] rows[j][c]
void short_conv(const float* const* rows, const float* w, const float* bias, float* y, int64_t channels, int width) {
    for (int64_t c = 0; c < channels; c += LANES) {
        const int64_t n = channels - c;
        vf sum = bias ? load_some(bias + c, n) : vf{};
        for (int j = 0; j < width; ++j) {
            sum = fma(load_some(rows[j] + c, n), load_some(w + j * channels + c, n), sum);
        }
        store_some(y + c, sum, n);
    }
}

constexpr int PER_BLOCK = SCAN_COLUMNS / LANES; // vectors of a row of a block

// Columns [first, first + BLOCKS * SCAN_COLUMNS) of one head. Four sums for each column: of the rows i with i % 4 = 0, 1,
// 2 and 3, so that additions need not wait for one another.
template <int BLOCKS, bool DELTA> void scan_columns(const Scan& s, float* state, int64_t first) {
    constexpr int N = BLOCKS * PER_BLOCK;
    const int64_t block = s.key_dim * SCAN_COLUMNS;
    const auto at = [&](int64_t i, int n) {
        return state + (n / PER_BLOCK) * block + i * SCAN_COLUMNS + (n % PER_BLOCK) * LANES;
    };
    for (int64_t t = 0; t < s.tokens; ++t) {
        const float *q = s.q + t * s.q_stride, *k = s.k + t * s.k_stride, *v = s.v + t * s.v_stride + first;
        const int64_t left = s.value_dim - first;
        const float rate = s.rate[t * s.gate_stride];
        const vf decay = splat(std::exp(s.decay * rate));
        vf value[N], added[N], sums[4][N] = {};
        for (int n = 0; n < N; ++n) {
            value[n] = load_some(v + n * LANES, left - n * LANES);
        }
        if constexpr (DELTA) {
            int64_t i = 0;
            for (; i + 4 <= s.key_dim; i += 4) {
                for (int j = 0; j < 4; ++j) {
                    const vf key = splat(k[i + j]);
                    for (int n = 0; n < N; ++n) {
                        sums[j][n] = fma(load(at(i + j, n)), key, sums[j][n]);
                    }
                }
            }
            for (int j = 0; i < s.key_dim; ++i, ++j) {
                for (int n = 0; n < N; ++n) {
                    sums[j][n] = fma(load(at(i, n)), splat(k[i]), sums[j][n]);
                }
            }
            for (int n = 0; n < N; ++n) {
                const vf known = ((sums[0][n] + sums[1][n]) + (sums[2][n] + sums[3][n])) * decay;
                added[n] = (value[n] - known) * splat(s.beta[t * s.gate_stride]);
                sums[0][n] = sums[1][n] = sums[2][n] = sums[3][n] = vf{};
            }
        } else {
            for (int n = 0; n < N; ++n) {
                added[n] = value[n] * splat(rate);
            }
        }
        const auto update = [&](int64_t i, int j) {
            const vf key = splat(k[i]), query = splat(q[i]);
            for (int n = 0; n < N; ++n) {
                const vf fresh = fma(key, added[n], load(at(i, n)) * decay);
                store(at(i, n), fresh);
                sums[j][n] = fma(fresh, query, sums[j][n]);
            }
        };
        int64_t i = 0;
        for (; i + 4 <= s.key_dim; i += 4) {
            update(i, 0);
            update(i + 1, 1);
            update(i + 2, 2);
            update(i + 3, 3);
        }
        for (int j = 0; i < s.key_dim; ++i, ++j) {
            update(i, j);
        }
        float* y = s.y + t * s.y_stride + first;
        for (int n = 0; n < N; ++n) {
            const vf sum = (sums[0][n] + sums[1][n]) + (sums[2][n] + sums[3][n]);
            store_some(y + n * LANES, fma(value[n], splat(s.skip), sum), left - n * LANES);
        }
    }
}

template <bool DELTA> void scan_blocks(const Scan& s, const float* from, float* to, int64_t first, int64_t last) {
    const int64_t block = s.key_dim * SCAN_COLUMNS;
    if (from == nullptr) {
        std::memset(to + first * block, 0, size_t((last - first) * block) * 4);
    } else if (from != to) {
        std::memcpy(to + first * block, from + first * block, size_t((last - first) * block) * 4);
    }
    int64_t b = first;
#if defined(LG_ISA_avx512)
    for (; b + 2 <= last; b += 2) {
        scan_columns<2, DELTA>(s, to + b * block, b * SCAN_COLUMNS);
    }
#endif
    for (; b < last; ++b) {
        scan_columns<1, DELTA>(s, to + b * block, b * SCAN_COLUMNS);
    }
}

void scan(const Scan& s, const float* from, float* to, int64_t first, int64_t last) {
    (s.beta ? scan_blocks<true> : scan_blocks<false>)(s, from, to, first, last);
}

} // namespace

void add_recurrent(KernelTable& k) {
    k.engine.short_conv = short_conv;
    k.engine.scan = scan;
}

} // namespace lg::LG_ISA
