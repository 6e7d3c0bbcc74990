// Products of float matrices, near what the machine can do: both are packed into panels, and tiles of the result are summed in
// registers (Goto and van de Geijn, "Anatomy of high-performance matrix multiplication").
//
// An element is summed in one order, whatever else is computed: in parts of DEPTH terms, one after another.
#include "quant/product.h"

#include "engine/scratch.h"
#include "kernels.h"
#include "simd/lanes.h"
#include "simd/simd.h"

#include <algorithm>

namespace lg::LG_ISA {
namespace {

constexpr int V = 2; // vectors of a tile's row
#if defined(LG_ISA_avx512) || defined(__aarch64__)
constexpr int ROWS = 12; // 24 sums in 32 registers
#else
constexpr int ROWS = 6; // 12 in 16
#endif
constexpr int WIDTH = V * LANES;
constexpr int64_t DEPTH = 256;         // terms of a panel: one of each side stays in the first cache
constexpr int64_t HEIGHT = 16 * ROWS;  // rows of the left side that stay in the second cache
constexpr int64_t BREADTH = 3072;      // columns of the right side that stay in the last one

inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// `lines` lines of `depth` terms -> panels of W lines, term after term; lines that lack are 0.
template <int W>
void pack(const float* x, int64_t line, int64_t term, int64_t lines, int64_t depth, float* out) {
    for (int64_t first = 0; first < lines; first += W, out += W * depth) {
        const float* from = x + first * line;
        const int count = int(std::min<int64_t>(W, lines - first));
        if (count < W) {
            std::fill(out, out + W * depth, 0.0f);
        }
        if (line == 1 && count == W) {
            for (int64_t k = 0; k < depth; ++k) {
                std::memcpy(out + k * W, from + k * term, W * sizeof(float));
            }
            continue;
        }
        int done = 0;
        if constexpr (W % LANES == 0) {
            if (term == 1) {
                for (; done + LANES <= count; done += LANES) {
                    const float* rows[LANES];
                    int64_t k = 0;
                    for (; k + LANES <= depth; k += LANES) {
                        vf columns[LANES];
                        for (int i = 0; i < LANES; ++i) {
                            rows[i] = from + (done + i) * line + k;
                        }
                        transpose<LANES>(rows, columns);
                        for (int j = 0; j < LANES; ++j) {
                            store(out + (k + j) * W + done, columns[j]);
                        }
                    }
                    for (; k < depth; ++k) {
                        for (int i = 0; i < LANES; ++i) {
                            out[k * W + done + i] = from[(done + i) * line + k];
                        }
                    }
                }
            }
        }
        for (int i = done; i < count; ++i) {
            const float* own = from + i * line;
            for (int64_t k = 0; k < depth; ++k) {
                out[k * W + i] = own[k * term];
            }
        }
    }
}

// sums [ROWS][V] of a panel of either side. Not inlined, and unrolled, so that sums stay in registers.
[[gnu::noinline]] void tile(const float* a, const float* b, int64_t depth, vf* out) {
    vf sum[ROWS][V] = {};
    for (int64_t k = 0; k < depth; ++k, a += ROWS, b += WIDTH) {
        vf right[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            right[v] = load(b + v * LANES);
        }
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; ++r) {
            const vf left = splat(a[r]);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                sum[r][v] = fma(left, right[v], sum[r][v]);
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
            out[r * V + v] = sum[r][v];
        }
    }
}

void put(const vf* sums, float* out, int64_t stride, int rows, int columns, bool add) {
    for (int r = 0; r < rows; ++r, out += stride) {
        if (columns == WIDTH) {
            for (int v = 0; v < V; ++v) {
                store(out + v * LANES, add ? load(out + v * LANES) + sums[r * V + v] : sums[r * V + v]);
            }
            continue;
        }
        float own[WIDTH];
        std::memcpy(own, sums + r * V, sizeof own);
        for (int c = 0; c < columns; ++c) {
            out[c] = add ? out[c] + own[c] : own[c];
        }
    }
}

void product(const ProductJob& job) {
    thread_local static Scratch<float> lefts, rights;
    const int64_t parts = std::max<int64_t>(1, (job.depth + DEPTH - 1) / DEPTH);
    for (int64_t column = 0; column < job.columns; column += BREADTH) {
        const int64_t columns = std::min(BREADTH, job.columns - column);
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t from = job.depth * part / parts, depth = job.depth * (part + 1) / parts - from;
            const bool add = job.add || part;
            float* right = rights.get(up(columns, WIDTH) * std::max<int64_t>(depth, 1));
            pack<WIDTH>(job.b + column * job.b_column + from * job.b_row, job.b_column, job.b_row, columns, depth, right);
            for (int64_t row = 0; row < job.rows; row += HEIGHT) {
                if (job.upper && row >= column + columns) {
                    break;
                }
                const int64_t rows = std::min(HEIGHT, job.rows - row);
                float* left = lefts.get(HEIGHT * std::max<int64_t>(depth, 1));
                pack<ROWS>(job.a + row * job.a_row + from * job.a_column, job.a_row, job.a_column, rows, depth, left);
                for (int64_t c = 0; c < columns; c += WIDTH) {
                    for (int64_t r = 0; r < rows; r += ROWS) {
                        if (job.upper && row + r >= column + c + WIDTH) {
                            break;
                        }
                        vf sums[ROWS * V];
                        tile(left + r * depth, right + c * depth, depth, sums);
                        put(sums, job.out + (row + r) * job.out_row + column + c, job.out_row,
                            int(std::min<int64_t>(ROWS, rows - r)), int(std::min<int64_t>(WIDTH, columns - c)), add);
                    }
                }
            }
        }
    }
}

} // namespace

void add_product(KernelTable& t) {
    t.product = product;
}

} // namespace lg::LG_ISA
