// The end of every product, in registers: weight scale, LoRA, DoRA scale, bias, architectural scale, in this order and
// no other.
#pragma once

#include "engine/engine.h"
#include "simd/simd.h"

namespace lg::LG_ISA {

// Asks for the rows of B that finish16 will want for rows [row, row + 16): the products before it are one stream that
// the processor reads ahead by itself, B is another of which each piece would be waited for.
inline void prefetch_epilogue(const Linear& l, int64_t row) {
    for (int r = 0; r < l.end.rank; ++r) {
        __builtin_prefetch(l.end.b + row * l.end.rank + r * 16);
    }
}

// Sixteen rows of one column: rows [row, row + 16), of which those below `l.rows` exist.
inline void finish16(const Linear& l, int64_t t, int64_t row, const float* product) {
    constexpr int N = 16 / LANES;
    const int64_t out = y_row(l, t);
    float* y = l.y + out * l.rows + row;
    vf v[N];
    for (int i = 0; i < N; ++i) {
        v[i] = load(product + i * LANES) * l.end.scale;
    }
    if (l.end.rank) {
        const float* b = l.end.b + row * l.end.rank;
        const float* xa = l.xa + out * l.xa_stride;
        for (int r = 0; r < l.end.rank; ++r) {
            for (int i = 0; i < N; ++i) {
                v[i] = fma(load(b + r * 16 + i * LANES), splat(xa[r]), v[i]);
            }
        }
    }
    if (row + 16 <= l.rows) {
        for (int i = 0; i < N; ++i) {
            if (l.end.dora_scale) {
                v[i] *= load(l.end.dora_scale + row + i * LANES);
            }
            if (l.end.bias) {
                v[i] += load(l.end.bias + row + i * LANES);
            }
            store(y + i * LANES, v[i] * l.end.arch_scale);
        }
        return;
    }
    float part[16];
    for (int i = 0; i < N; ++i) {
        store(part + i * LANES, v[i]);
    }
    for (int64_t i = 0; row + i < l.rows; ++i) {
        const float adapted = l.end.dora_scale ? part[i] * l.end.dora_scale[row + i] : part[i];
        y[i] = (adapted + (l.end.bias ? l.end.bias[row + i] : 0.0f)) * l.end.arch_scale;
    }
}

} // namespace lg::LG_ISA
