// Products of packed weights (packed.h) with 8-bit activations, in integers within each SUB of weights that share a scale.
//
// An output is summed in one order, whatever else is computed: for each 32 columns, first the mins times the sums of the
// activations, then the scaled products times the activations' scale, by `group_product` and by panel.h alike.
#include "kernels.h"
#include "panel.h"

namespace lg::LG_ISA {

namespace {

// Columns that are multiplied at once by what is unpacked of a group.
#if defined(LG_ISA_avx512) || defined(LG_ISA_neon)
#define LG_FEW 8
#else
#define LG_FEW 4
#endif
constexpr int64_t FEW = LG_FEW;

template <class P> int64_t group_bytes(int64_t cols) { return cols / P::UNIT * P::UNIT_BYTES; }

template <class P> void pack(const Linear& l, int64_t first, uint8_t* group) {
    using T = typename P::T;
    constexpr int RUNS = T::BLOCK / 32; // of a block of the file
    std::memset(group, 0, size_t(group_bytes<P>(l.cols)));
    for (int64_t block = 0; block < l.cols / T::BLOCK; ++block) {
        uint8_t code[RUNS][GROUP][32] = {}; // of rows past the last, whatever: nobody sees their products
        const auto run_at = [&](int run) {
            const int64_t column = block * T::BLOCK + 32 * run;
            return group + column / P::UNIT * P::UNIT_BYTES + P::Scales::UNIT_BYTES + column % P::UNIT / 32 * P::RUN_BYTES;
        };
        for (int r = 0; r < GROUP && first + r < l.rows; ++r) {
            const uint8_t* b = l.weight + (first + r) * l.row_bytes + block * T::BYTES;
            alignas(32) i8x32 codes[RUNS];
            T::decode(b, codes);
            for (int run = 0; run < RUNS; ++run) {
                for (int i = 0; i < 32; ++i) {
                    code[run][r][i] = P::code(codes[run][i]);
                }
                uint8_t* unit = group + (block * T::BLOCK + 32 * run) / P::UNIT * P::UNIT_BYTES;
                P::scales(b, run, unit + 2 * r, run_at(run) + P::Store::SIZE + P::Scales::ROW_BYTES * r);
            }
        }
        for (int run = 0; run < RUNS; ++run) {
            P::Store::put(run_at(run), code[run]);
        }
    }
}

// One part of a group of rows with N columns.
template <class P, int N>
[[gnu::noinline]] void group_product(const uint8_t* group, int part, int64_t cols, const Columns<N>& x, const Stream& stream,
                                     float (*y)[GROUP]) {
    using S = typename P::Scales;
    constexpr int WORDS = S::SUB / 4;
    const int64_t ahead = stream.at(group) - group; // for the whole group: what is left of two streams is little
    vf acc[N] = {};
    for (int64_t k = 0; k < cols; k += P::UNIT, group += P::UNIT_BYTES) {
        const typename S::Unit unit(group, part);
        for (int i = 0; i < P::RUNS; ++i) {
            const uint8_t* run = group + S::UNIT_BYTES + i * P::RUN_BYTES;
            const uint8_t* scales = run + P::Store::SIZE;
            const int64_t at = k / 32 + i;
            if (PARTS == 1 || part == 0) { // the other parts follow in the same lines
#pragma GCC unroll 16
                for (int b = 0; b < P::RUN_BYTES; b += 64) {
                    __builtin_prefetch(run + ahead + b);
                }
            }
            vf value[N];
#pragma GCC unroll 2
            for (int s = 0; s < 32 / S::SUB; ++s) {
                const int64_t sub = at * (32 / S::SUB) + s;
                vi dots[N];
#pragma GCC unroll 8
                for (int c = 0; c < N; ++c) {
                    dots[c] = P::OFFSET ? splat(x.start[c][sub]) : vi{};
                }
#pragma GCC unroll 8
                for (int word = 0; word < WORDS; ++word) {
                    const int j = s * WORDS + word;
                    const vi w = P::codes(run, j, part);
#pragma GCC unroll 8
                    for (int c = 0; c < N; ++c) {
                        dots[c] = dot_lanes<P::SIGNED>(dots[c], w, word_of(x.codes[c] + 32 * at + 4 * j));
                    }
                }
                const vf scale = unit.scale(scales, s, part);
#pragma GCC unroll 8
                for (int c = 0; c < N; ++c) {
                    const vf dot = to_float(dots[c]);
                    value[c] = s == 0 ? dot * scale : fma(dot, scale, value[c]);
                }
                if constexpr (S::MIN) {
                    const vf min = unit.min(scales, s, part);
#pragma GCC unroll 8
                    for (int c = 0; c < N; ++c) {
                        acc[c] = fma(min, splat(x.dsum[c][sub]), acc[c]);
                    }
                }
            }
#pragma GCC unroll 8
            for (int c = 0; c < N; ++c) {
                acc[c] = fma(value[c], splat(x.d[c][at]), acc[c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) {
        store(y[c] + part * LANES, acc[c]);
    }
}

// One group of rows with columns [t, t + N).
template <class P, int N>
void group_columns(const Linear& l, const int32_t* starts, const Stream& stream, int64_t row, int64_t t) {
    const Columns<N> x = columns_at<P, N>(l, starts, t, 0);
    const uint8_t* group = l.packed + row / GROUP * group_bytes<P>(l.cols);
    float y[N][GROUP];
    for (int part = 0; part < PARTS; ++part) {
        group_product<P, N>(group, part, l.cols, x, stream, y);
    }
    for (int c = 0; c < N; ++c) {
        finish16(l, t + c, row, y[c]);
    }
}

// A few columns, straight from the packed weight.
template <class P> void few(const Linear& l, int64_t first, int64_t last) {
    thread_local static Scratch<int32_t> start_memory;
    const int32_t* start = starts<P>(l, start_memory);
    const int64_t bytes = group_bytes<P>(l.cols);
    const Stream stream(l.packed + first / GROUP * bytes, l.packed + (last + GROUP - 1) / GROUP * bytes, l.then);
    EndsAhead ends(l);
    ends.begin(first, std::min(first + GROUP, last), 1);
    ends.ask<3>();
    for (int64_t row = first; row < last; row += GROUP) {
        ends.begin(row + GROUP, std::min(row + 2 * GROUP, last), 1);
        ends.ask<3>();
        for (int64_t t = 0; t < l.columns;) {
            const int64_t left = l.columns - t, passes = (left + FEW - 1) / FEW;
            int64_t width = (left + passes - 1) / passes;
            width -= width > 4 && width % 2; // 5 = 4 + 1, 7 = 6 + 1: less code
            switch (width) {
            case 1: group_columns<P, 1>(l, start, stream, row, t); break;
            case 2: group_columns<P, 2>(l, start, stream, row, t); break;
            case 3: group_columns<P, 3>(l, start, stream, row, t); break;
            case 4: group_columns<P, 4>(l, start, stream, row, t); break;
#if LG_FEW > 4
            case 6: group_columns<P, 6>(l, start, stream, row, t); break;
            case 8: group_columns<P, 8>(l, start, stream, row, t); break;
#endif
            }
            t += width;
        }
    }
}

template <class P> void linear(const Linear& l, int64_t first, int64_t last) {
    if (l.columns <= 2 * FEW) {
        few<P>(l, first, last);
    } else {
        sweep_panels<P>(l, group_bytes<P>(l.cols), first, last);
    }
}

template <class P> PackedKernels kernels_of() { return {group_bytes<P>, pack<P>, linear<P>}; }

} // namespace

void add_linear_packed(KernelTable& k) {
    PackedKernels* by_type = k.engine.packed;
    by_type[Q4_0] = kernels_of<Q4_0Packed>();
    by_type[Q4_1] = kernels_of<Q4_1Packed>();
    by_type[Q5_0] = kernels_of<Q5_0Packed>();
    by_type[Q5_1] = kernels_of<Q5_1Packed>();
    by_type[Q8_0] = kernels_of<Q8_0Packed>();
    by_type[Q2_K] = kernels_of<Q2_KPacked>();
    by_type[Q3_K] = kernels_of<Q3_KPacked>();
    by_type[Q4_K] = kernels_of<Q4_KPacked>();
    by_type[Q5_K] = kernels_of<Q5_KPacked>();
    by_type[Q6_K] = kernels_of<Q6_KPacked>();
    by_type[IQ4_NL] = kernels_of<IQ4_NLPacked>();
    by_type[IQ4_XS] = kernels_of<IQ4_XSPacked>();
    by_type[MXFP4] = kernels_of<MXFP4Packed>();
    by_type[NVFP4] = kernels_of<NVFP4Packed>();
    by_type[TQ2_0] = kernels_of<TQ2_0Packed>();
}

} // namespace lg::LG_ISA
