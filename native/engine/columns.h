// What columns of 8-bit activations give to a product of packed weights.
#pragma once

#include "engine/engine.h"
#include "engine/scratch.h"
#include "packed.h"

namespace lg::LG_ISA {

// C columns.
template <int C> struct Columns {
    const int8_t* codes[C];
    const float* d[C];       // per 32
    const int32_t* start[C]; // per SUB: -OFFSET * the sum of its codes; unused where the type has no OFFSET
    const float* dsum[C];    // per SUB, for the mins
};

// Four codes of a column in every lane.
inline vi word_of(const int8_t* codes) {
    int32_t four;
    std::memcpy(&four, codes, 4);
    return splat(four);
}

// `start` of all columns of a product, made once for many rows: a sub-block's sum begins there and needs no correction.
template <class P> const int32_t* starts(const Linear& l, Scratch<int32_t>& memory) {
    if constexpr (P::OFFSET == 0) {
        return nullptr;
    } else {
        constexpr int SUB = P::Scales::SUB;
        const int64_t n = l.cols / SUB;
        int32_t* out = memory.get(l.columns * n);
        for (int64_t t = 0; t < l.columns; ++t) {
            const int32_t* sum = (SUB == 16 ? l.x.sum16 : l.x.sum32) + x_row(l, t) * n;
            for (int64_t s = 0; s < n; ++s) {
                out[t * n + s] = -P::OFFSET * sum[s];
            }
        }
        return out;
    }
}

// Columns [t, t + C) from weight k on.
template <class P, int C> inline Columns<C> columns_at(const Linear& l, const int32_t* starts, int64_t t, int64_t k) {
    constexpr int SUB = P::Scales::SUB;
    Columns<C> x;
    for (int c = 0; c < C; ++c) {
        const int64_t at = x_row(l, t + c) * l.cols + k;
        x.codes[c] = l.x.codes + at;
        x.d[c] = l.x.d + at / 32;
        x.start[c] = P::OFFSET ? starts + ((t + c) * l.cols + k) / SUB : nullptr;
        x.dsum[c] = (SUB == 16 ? l.x.dsum16 : l.x.dsum32) + at / SUB;
    }
    return x;
}

} // namespace lg::LG_ISA
