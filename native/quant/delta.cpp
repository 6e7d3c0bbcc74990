// Adapter deltas on float rows, and the search for values that are not finite. One source for every instruction set.
//
// The order of operations is fixed, so that a merge gives the same bytes however it is cut into chunks and on
// whatever machine: for each weight acc = 0; acc += b[row, k] * a[k, col] for k = 0, 1, ...; y = x + scale * acc,
// each operation rounded to float32 (no FMA). `loragraft.adapters.delta` is the same in NumPy.
#include "kernels.h"

#include <cstring>

namespace lg::LG_ISA {
namespace {

#if defined(LG_ISA_avx512)
constexpr int LANES = 16, VECTORS = 4;
#elif defined(LG_ISA_avx2)
constexpr int LANES = 8, VECTORS = 2;
#else
constexpr int LANES = 4, VECTORS = 2;
#endif
constexpr int ROWS = 4;                  // ROWS x VECTORS accumulators stay in registers
constexpr int TILE = LANES * VECTORS;    // columns of one tile
constexpr int64_t PANEL = 16 * TILE;     // columns of A that stay in the first-level cache for all rows

typedef float vf __attribute__((vector_size(LANES * sizeof(float))));

inline vf load(const float* p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

// TILE columns of R rows: y, a and b point at the tile's first element.
template <int R>
void add_tile(float* y, const float* a, const float* b, int64_t cols, int64_t rank, float scale) {
    vf acc[R][VECTORS] = {};
    for (int64_t k = 0; k < rank; ++k) {
        vf column[VECTORS];
        for (int v = 0; v < VECTORS; ++v) {
            column[v] = load(a + k * cols + v * LANES);
        }
        for (int r = 0; r < R; ++r) {
            const float weight = b[r * rank + k];
            for (int v = 0; v < VECTORS; ++v) {
                acc[r][v] += weight * column[v];
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < VECTORS; ++v) {
            float* at = y + r * cols + v * LANES;
            store(at, load(at) + scale * acc[r][v]);
        }
    }
}

void add_rest(float* y, const float* a, const float* b, int64_t rows, int64_t cols, int64_t from, int64_t rank,
              float scale) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = from; c < cols; ++c) {
            float acc = 0.0f;
            for (int64_t k = 0; k < rank; ++k) {
                acc += b[r * rank + k] * a[k * cols + c];
            }
            y[r * cols + c] = y[r * cols + c] + scale * acc;
        }
    }
}

void add(float* y, const float* a, const float* b, int64_t rows, int64_t cols, int64_t rank, float scale) {
    const int64_t whole = cols / TILE * TILE;
    for (int64_t panel = 0; panel < whole; panel += PANEL) {
        const int64_t end = panel + PANEL < whole ? panel + PANEL : whole;
        int64_t r = 0;
        for (; r + ROWS <= rows; r += ROWS) {
            for (int64_t c = panel; c < end; c += TILE) {
                add_tile<ROWS>(y + r * cols + c, a + c, b + r * rank, cols, rank, scale);
            }
        }
        for (; r < rows; ++r) {
            for (int64_t c = panel; c < end; c += TILE) {
                add_tile<1>(y + r * cols + c, a + c, b + r * rank, cols, rank, scale);
            }
        }
    }
    add_rest(y, a, b, rows, cols, whole, rank, scale);
}

// The index of the first word whose bits under `exponent` are all set (an infinity or NaN), or n.
template <typename Word>
int64_t first_special(const uint8_t* words, int64_t n, Word exponent) {
    constexpr int64_t RUN = 1024;
    for (int64_t i = 0; i < n; i += RUN) {
        const int64_t end = i + RUN < n ? i + RUN : n;
        Word any = 0;
        for (int64_t j = i; j < end; ++j) {
            Word w;
            std::memcpy(&w, words + j * sizeof(Word), sizeof w);
            any |= Word((w & exponent) == exponent);
        }
        if (any) {
            for (int64_t j = i; j < end; ++j) {
                Word w;
                std::memcpy(&w, words + j * sizeof(Word), sizeof w);
                if ((w & exponent) == exponent) {
                    return j;
                }
            }
        }
    }
    return n;
}

int64_t first_special32(const uint8_t* words, int64_t n, uint32_t exponent) {
    return first_special<uint32_t>(words, n, exponent);
}

int64_t first_special16(const uint8_t* words, int64_t n, uint32_t exponent) {
    return first_special<uint16_t>(words, n, uint16_t(exponent));
}

} // namespace

void add_delta(KernelTable& t) {
    t.delta = {add, first_special32, first_special16};
}

} // namespace lg::LG_ISA
