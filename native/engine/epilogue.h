// The end of every product, in registers: weight scale, LoRA, DoRA scale, bias, architectural scale, in this order and
// no other.
#pragma once

#include "engine/engine.h"
#include "engine/scratch.h"
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

// Asks for B of the rows that finish16 will come to, a few lines at a time while their products are computed. The weight is
// one stream, which the processor reads ahead by itself; each B is another, and each piece of it would be waited for.
class EndsAhead {
  public:
    // Of all columns of the product; valid until the thread makes the next.
    explicit EndsAhead(const Linear& l) {
        thread_local static Scratch<Piece> memory;
        int64_t most = 0;
        for (int64_t t = 0; l.row_end && t < l.columns; ++t) {
            most += l.row_end[y_row(l, t)].n_terms;
        }
        pieces_ = memory.get(most);
        for (int64_t t = 0; most && t < l.columns; ++t) {
            const RowEnd& end = l.row_end[y_row(l, t)];
            for (int i = 0; i < end.n_terms; ++i) {
                const LoraTerm& term = end.terms[i];
                if (!count_ || pieces_[count_ - 1].b != term.b) { // columns of one adapter lie together
                    pieces_[count_++] = {term.b, factor_group_bytes(term.form, term.rank)};
                }
            }
        }
    }

    // For rows [row, last), to be asked for in `turns` calls of `ask`.
    void begin(int64_t row, int64_t last, int64_t turns) {
        first_ = row / 16;
        groups_ = (last + 15) / 16 - first_;
        int64_t lines = 0;
        for (int64_t i = 0; groups_ > 0 && i < count_; ++i) {
            lines += (groups_ * pieces_[i].bytes + LINE - 1) / LINE + 1;
        }
        each_ = (lines + turns - 1) / turns;
        piece_ = 0;
        at_ = end_ = nullptr;
    }
    template <int LOCALITY> void ask() {
        for (int64_t i = 0; i < each_; ++i) {
            if (at_ >= end_) {
                if (piece_ == count_) {
                    each_ = 0;
                    return;
                }
                const Piece& piece = pieces_[piece_++];
                at_ = piece.b + first_ * piece.bytes;
                end_ = at_ + groups_ * piece.bytes;
                at_ -= uintptr_t(at_) % LINE;
            }
            __builtin_prefetch(at_, 0, LOCALITY);
            at_ += LINE;
        }
    }

  private:
    static constexpr int64_t LINE = 64;
    struct Piece {
        const uint8_t* b;
        int64_t bytes; // of 16 rows
    };
    Piece* pieces_;
    int64_t count_ = 0;
    int64_t first_ = 0, groups_ = 0, each_ = 0, piece_ = 0;
    const uint8_t *at_ = nullptr, *end_ = nullptr;
};

// Adds sixteen rows of B xa. Four sums, which do not wait for each other.
template <class B> inline void add_term(const LoraTerm& term, int64_t row, vf* v) {
    const uint8_t* b = term.b + row * term.rank * B::BYTES;
    for (int i = 0; i < 16 / LANES; ++i) {
        vf sums[4] = {v[i]};
        const auto add = [&](int r, vf& sum) {
            sum = fma(B::lanes(b + (r * 16 + i * LANES) * B::BYTES), splat(term.xa[r]), sum);
        };
        int r = 0;
        for (; r + 4 <= term.rank; r += 4) {
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                add(r + j, sums[j]);
            }
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) { // rank r in sum r % 4, so that a rank of zeros behind it changes no bit
            if (r + j < term.rank) {
                add(r + j, sums[j]);
            }
        }
        v[i] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }
}

// N ranks of B in 8 bits, for xa times their scales; four sums as above.
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
