// Products with float activations. Float weights are read as they lie; quantized ones are turned to floats first.
//
// An output is summed in one order, whatever else is computed: lane i of one vector adds weight * activation of columns i,
// i + LANES, i + 2 * LANES, ..., and the lanes are summed by halves at the end. A tile is R rows by C columns of such vectors.
#include "engine/epilogue.h"
#include "engine/scratch.h"
#include "kernels.h"
#include "simd/simd.h"

#include <algorithm>

namespace lg::LG_ISA {

namespace {

constexpr int GROUP = 16;        // rows that are finished together
constexpr int64_t FEW = 16;      // columns whose adapters' B of a group fit into the first-level cache
constexpr int64_t COLUMNS = 256; // swept by one group after the other, so that they stay in the last cache
constexpr int R = 4;
#if defined(LG_ISA_avx512) || defined(__aarch64__)
#define LG_FLOAT_COLUMNS 6 // 24 sums in 32 registers
#else
#define LG_FLOAT_COLUMNS 3 // 12 in 16
#endif
constexpr int C = LG_FLOAT_COLUMNS;

// The first n lanes, n < LANES; the others 0.
template <class W> inline vf some_lanes(const uint8_t* p, int64_t n) {
    uint8_t buffer[LANES * W::BYTES] = {};
    std::memcpy(buffer, p, size_t(n) * W::BYTES);
    return W::lanes(buffer);
}

// RT rows by CT columns: out[column * GROUP + row]; `ask`: what is asked for along with each row. Not inlined, and unrolled:
// GCC 12 keeps the sums in memory otherwise.
template <class W, int RT, int CT>
[[gnu::noinline]] void tile(const uint8_t* const* w, const uint8_t* const* ask, const float* const* x, int64_t n, vf* out) {
    vf acc[RT][CT] = {};
    const int64_t whole = n / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES) {
        vf columns[CT];
#pragma GCC unroll 8
        for (int c = 0; c < CT; ++c) {
            columns[c] = load(x[c] + i);
        }
#pragma GCC unroll 8
        for (int r = 0; r < RT; ++r) {
            const vf row = W::lanes(w[r] + i * W::BYTES);
            if (CT < C) { // as many columns as there are: what is computed takes longer than reading
                __builtin_prefetch(ask[r] + i * W::BYTES);
            }
#pragma GCC unroll 8
            for (int c = 0; c < CT; ++c) {
                acc[r][c] = fma(row, columns[c], acc[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < CT; ++c) {
#pragma GCC unroll 8
        for (int r = 0; r < RT; ++r) {
            out[c * GROUP + r] = acc[r][c];
        }
    }
    for (int c = 0; whole < n && c < CT; ++c) {
        const vf column = some_lanes<Singles>((const uint8_t*)(x[c] + whole), n - whole);
        for (int r = 0; r < RT; ++r) {
            vf& sum = out[c * GROUP + r];
            sum = fma(some_lanes<W>(w[r] + whole * W::BYTES, n - whole), column, sum);
        }
    }
}

void finish(const Linear& l, int64_t t, int64_t row, const vf* sums) {
    float product[GROUP];
    for (int i = 0; i < GROUP; i += LANES) {
        store(product + i, sum_each(sums + i));
    }
    finish16(l, t, row, product);
}

// One group of rows, which lie at `w`, with CT columns from t on.
template <class W, int CT>
void group_columns(const Linear& l, const Stream& stream, const uint8_t* w, int64_t row_bytes, int64_t row, int64_t t) {
    const float* x[CT];
    for (int c = 0; c < CT; ++c) {
        x[c] = l.x.x + x_row(l, t + c) * l.cols;
    }
    const int64_t rows = std::min<int64_t>(GROUP, l.rows - row);
    vf sums[CT * GROUP] = {};
    for (int64_t r = 0; r < rows; r += R) {
        const uint8_t *at[R], *ask[R];
        for (int i = 0; i < R; ++i) { // past the last row, that one again
            at[i] = w + std::min(r + i, rows - 1) * row_bytes;
            ask[i] = stream.at(at[i]);
        }
        tile<W, R, CT>(at, ask, x, l.cols, sums + r);
    }
    for (int c = 0; c < CT; ++c) {
        finish(l, t + c, row, sums + c * GROUP);
    }
}

int64_t tiles_of(int64_t columns) { return (columns + C - 1) / C; }

// One group of rows with columns [t, end), in tiles that are as even as can be.
template <class W>
void group(const Linear& l, const Stream& stream, EndsAhead& ends, const uint8_t* w, int64_t row_bytes, int64_t row, int64_t t,
           int64_t end) {
    while (t < end) {
        const int64_t tiles = tiles_of(end - t), width = (end - t + tiles - 1) / tiles;
        if (l.columns <= FEW) {
            ends.ask<3>();
        } else {
            ends.ask<2>(); // more than the first-level cache holds
        }
        switch (width) {
        case 1: group_columns<W, 1>(l, stream, w, row_bytes, row, t); break;
        case 2: group_columns<W, 2>(l, stream, w, row_bytes, row, t); break;
        case 3: group_columns<W, 3>(l, stream, w, row_bytes, row, t); break;
#if LG_FLOAT_COLUMNS > 3
        case 4: group_columns<W, 4>(l, stream, w, row_bytes, row, t); break;
        case 5: group_columns<W, 5>(l, stream, w, row_bytes, row, t); break;
        case 6: group_columns<W, 6>(l, stream, w, row_bytes, row, t); break;
#endif
        }
        t += width;
    }
}

// Float weights, straight from the rows.
template <class W> void from_rows(const Linear& l, int64_t first, int64_t last) {
    const Stream stream(l.weight + first * l.row_bytes, l.weight + last * l.row_bytes, l.then);
    EndsAhead ends(l);
    for (int64_t t = 0; t < l.columns; t += COLUMNS) {
        const int64_t end = std::min(l.columns, t + COLUMNS);
        ends.begin(first, std::min(first + GROUP, last), 1);
        ends.ask<3>();
        for (int64_t row = first; row < last; row += GROUP) {
            ends.begin(row + GROUP, std::min(row + 2 * GROUP, last), tiles_of(end - t));
            group<W>(l, stream, ends, l.weight + row * l.row_bytes, l.row_bytes, row, t, end);
        }
    }
}

// A row of any type, or a whole number of its blocks, as floats.
void to_floats(int type, const uint8_t* row, float* y, int64_t n) {
    if (type == F32) {
        std::memcpy(y, row, size_t(n) * 4);
    } else {
        kernels().type[type].dequantize(row, y, n);
    }
}

void linear_f32(const Linear& l, int64_t first, int64_t last) {
    switch (l.type) {
    case F32: from_rows<Singles>(l, first, last); return;
    case F16: from_rows<Halves>(l, first, last); return;
    case BF16: from_rows<Bfloats>(l, first, last); return;
    }
    thread_local static Scratch<float> memory;
    float* floats = memory.get(GROUP * l.cols);
    EndsAhead ends(l);
    for (int64_t row = first; row < last; row += GROUP) {
        for (int64_t r = 0; r < GROUP && row + r < last; ++r) {
            to_floats(l.type, l.weight + (row + r) * l.row_bytes, floats + r * l.cols, l.cols);
        }
        const uint8_t* rows = (const uint8_t*)floats;
        ends.begin(row, std::min(row + GROUP, last), tiles_of(l.columns));
        group<Singles>(l, {rows, rows + GROUP * l.cols * 4, rows}, ends, rows, l.cols * 4, row, 0, l.columns);
    }
}

} // namespace

void add_linear_f32(KernelTable& k) {
    k.engine.linear_f32 = linear_f32;
    k.engine.to_floats = to_floats;
}

} // namespace lg::LG_ISA
