// The end of every product, in registers: weight scale, LoRA, DoRA scale, bias, architectural scale, in this order and
// no other.
#pragma once

#include "engine/engine.h"
#include "simd/bytes.h"
#include "simd/half.h"

namespace lg::LG_ISA {

// How floats that are stored one way or another are read.
struct Singles {
    static constexpr int BYTES = 4;
    static inline vf lanes(const uint8_t* p) { return load((const float*)p); }
};
struct Halves {
    static constexpr int BYTES = 2;
    static inline vf lanes(const uint8_t* p) { return load_half(p); }
};
struct Bfloats {
    static constexpr int BYTES = 2;
    static inline vf lanes(const uint8_t* p) { return load_bfloat(p); }
};

// Asks for the rows of B that finish16 will want for rows [row, row + 16), a group of rows ahead: the products before it are one stream that
// the processor reads ahead by itself, each B is another of which each piece would be waited for.
inline void prefetch_epilogue(const Linear& l, int64_t row) {
    if (row >= l.rows) {
        return;
    }
    const uint8_t* asked = nullptr;
    for (int64_t t = 0; l.row_end && t < l.columns; ++t) {
        const RowEnd& end = l.row_end[y_row(l, t)];
        for (int i = 0; i < end.n_terms; ++i) {
            const LoraTerm& term = end.terms[i];
            if (term.b == asked) {
                continue; // as the column before
            }
            asked = term.b;
            const int64_t bytes = factor_group_bytes(term.form, term.rank);
            const uint8_t* b = term.b + row / 16 * bytes;
            for (int64_t at = 0; at < bytes; at += 64) {
                __builtin_prefetch(b + at);
            }
        }
    }
}

// Adds sixteen rows of B xa.
template <class B> inline void add_term(const LoraTerm& term, int64_t row, vf* v) {
    const uint8_t* b = term.b + row * term.rank * B::BYTES;
    for (int r = 0; r < term.rank; ++r) {
        const vf xa = splat(term.xa[r]);
        for (int i = 0; i < 16 / LANES; ++i) {
            v[i] = fma(B::lanes(b + (r * 16 + i * LANES) * B::BYTES), xa, v[i]);
        }
    }
}

// N ranks of B in 8 bits, for xa times their scales. Four sums, which do not wait for each other.
template <int N> inline void add_codes(const int8_t* codes, const float* xa, vf* v) {
    for (int i = 0; i < 16 / LANES; ++i) {
        vf sums[4] = {v[i]};
#pragma GCC unroll 16
        for (int r = 0; r < N; ++r) {
            sums[r % 4] = fma(to_float(widen(codes + r * 16 + i * LANES)), splat(xa[r]), sums[r % 4]);
        }
        v[i] = N > 1 ? (sums[0] + sums[1]) + (sums[2] + sums[3]) : sums[0];
    }
}

// Adds sixteen rows of B xa, of B in 8 bits.
inline void add_q8(const LoraTerm& term, int64_t row, vf* v) {
    const uint8_t* scales = term.b + row / 16 * factor_group_bytes(FactorForm::Q8, term.rank);
    const int8_t* codes = (const int8_t*)scales + 2 * term.rank;
    int r = 0;
    for (; r + LANES <= term.rank; r += LANES) {
        float xa[LANES];
        store(xa, load(term.xa + r) * load_half(scales + 2 * r));
        asm("" ::"r"(xa) : "memory"); // read from there for each product: GCC 12 shuffles the vector sixteen times
        add_codes<LANES>(codes + r * 16, xa, v);
    }
    for (; r < term.rank; ++r) {
        const float xa = term.xa[r] * get_half(scales + 2 * r);
        add_codes<1>(codes + r * 16, &xa, v);
    }
}

// Adds what adapters give to sixteen rows. Not inlined: where there are none, the rest is a few instructions.
[[gnu::noinline]] static void add_terms(const RowEnd& end, int64_t row, vf* v) {
    for (int term = 0; term < end.n_terms; ++term) {
        const LoraTerm& own = end.terms[term];
        switch (own.form) {
        case FactorForm::FLOATS: add_term<Singles>(own, row, v); break;
        case FactorForm::HALVES: add_term<Halves>(own, row, v); break;
        case FactorForm::Q8: add_q8(own, row, v); break;
        }
    }
}

// Sixteen rows of one column: rows [row, row + 16), of which those below `l.rows` exist.
inline void finish16(const Linear& l, int64_t t, int64_t row, const float* product) {
    constexpr int N = 16 / LANES;
    const int64_t out = y_row(l, t);
    float* y = l.y + out * l.rows + row;
    vf v[N];
    for (int i = 0; i < N; ++i) {
        v[i] = load(product + i * LANES) * l.scale;
    }
    const float* dora_scale = nullptr;
    if (l.row_end) {
        const RowEnd& end = l.row_end[out];
        dora_scale = end.dora_scale;
        add_terms(end, row, v);
    }
    if (row + 16 <= l.rows) {
        for (int i = 0; i < N; ++i) {
            if (dora_scale) {
                v[i] *= load(dora_scale + row + i * LANES);
            }
            if (l.bias) {
                v[i] += load(l.bias + row + i * LANES);
            }
            store(y + i * LANES, v[i] * l.arch_scale);
        }
        return;
    }
    float part[16];
    for (int i = 0; i < N; ++i) {
        store(part + i * LANES, v[i]);
    }
    for (int64_t i = 0; row + i < l.rows; ++i) {
        const float adapted = dora_scale ? part[i] * dora_scale[row + i] : part[i];
        y[i] = (adapted + (l.bias ? l.bias[row + i] : 0.0f)) * l.arch_scale;
    }
}

} // namespace lg::LG_ISA
