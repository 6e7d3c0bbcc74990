// Products of packed weights (packed.h) with 8-bit activations.
#include <type_traits>

#include "kernels.h"
#include "engine/packed.h"
#include "engine/panel.h"

namespace lg::LG_ISA {

namespace {

template <class P> int64_t group_bytes(int64_t cols) { return cols / P::UNIT * P::UNIT_BYTES; }

template <class P> void pack(const Linear& l, int64_t first, uint8_t* group) {
    using T = typename P::T;
    constexpr int RUNS = T::BLOCK / 32; // of a block of the file
    std::memset(group, 0, size_t(group_bytes<P>(l.cols)));
    for (int64_t block = 0; block < l.cols / T::BLOCK; ++block) {
        uint8_t code[RUNS][GROUP][32] = {}; // of rows past the last, whatever: their scales are 0
        for (int r = 0; r < GROUP && first + r < l.rows; ++r) {
            const uint8_t* b = l.weight + (first + r) * l.row_bytes + block * T::BYTES;
            alignas(32) i8x32 codes[RUNS];
            float scale[T::BLOCK / T::SUB], min[T::BLOCK / T::SUB];
            T::decode(b, codes, scale, min);
            for (int run = 0; run < RUNS; ++run) {
                for (int i = 0; i < 32; ++i) {
                    code[run][r][i] = P::code(codes[run][i]);
                }
                const int64_t column = block * T::BLOCK + 32 * run;
                uint8_t* unit = group + column / P::UNIT * P::UNIT_BYTES;
                uint8_t* at = unit + P::Scales::UNIT_BYTES + column % P::UNIT / 32 * P::RUN_BYTES + P::Store::SIZE;
                P::scales(b, unit + 2 * r, at + (std::is_same_v<typename P::Scales, HalfScales> ? 2 : 1) * r, run);
            }
        }
        for (int run = 0; run < RUNS; ++run) {
            const int64_t column = block * T::BLOCK + 32 * run;
            uint8_t* unit = group + column / P::UNIT * P::UNIT_BYTES;
            P::Store::put(unit + P::Scales::UNIT_BYTES + column % P::UNIT / 32 * P::RUN_BYTES, code[run]);
        }
    }
}

// One group of rows with C columns.
template <class P, int C> inline void group_product(const Linear& l, const uint8_t* group, int64_t t, float (*y)[GROUP]) {
    using S = typename P::Scales;
    constexpr int WORDS = S::SUB / 4;
    const int8_t* codes[C];
    const float *d[C], *dsum[C];
    const int32_t* sum[C];
    for (int c = 0; c < C; ++c) {
        const int64_t row = x_row(l, t + c);
        codes[c] = l.x.codes + row * l.cols;
        d[c] = l.x.d + row * (l.cols / 32);
        sum[c] = (S::SUB == 16 ? l.x.sum16 : l.x.sum32) + row * (l.cols / S::SUB);
        dsum[c] = (S::SUB == 16 ? l.x.dsum16 : l.x.dsum32) + row * (l.cols / S::SUB);
    }
    vf acc[PARTS][C] = {};
    for (int64_t k = 0; k < l.cols; k += P::UNIT, group += P::UNIT_BYTES) {
        for (int part = 0; part < PARTS; ++part) {
            const typename S::Unit unit(group, part);
            for (int i = 0; i < P::RUNS; ++i) {
                const uint8_t* run = group + S::UNIT_BYTES + i * P::RUN_BYTES;
                const uint8_t* scales = run + P::Store::SIZE;
                const int64_t at = k / 32 + i;
                vf value[C];
#pragma GCC unroll 2
                for (int s = 0; s < 32 / S::SUB; ++s) {
                    vi dots[C];
                    for (int c = 0; c < C; ++c) {
                        dots[c] = (P::OFFSET ? -P::OFFSET * sum[c][at * (32 / S::SUB) + s] : 0) - vi{};
                    }
#pragma GCC unroll 8
                    for (int word = 0; word < WORDS; ++word) {
                        const int j = s * WORDS + word;
                        const vi w = P::codes(run, j, part);
                        for (int c = 0; c < C; ++c) {
                            int32_t four;
                            std::memcpy(&four, codes[c] + 32 * at + 4 * j, 4);
                            dots[c] = dot_lanes<P::SIGNED>(dots[c], w, four);
                        }
                    }
                    const vf scale = unit.scale(scales, s, part);
                    for (int c = 0; c < C; ++c) {
                        const vf product = __builtin_convertvector(dots[c], vf);
                        value[c] = s == 0 ? product * scale : fma(product, scale, value[c]);
                        if constexpr (S::MIN) {
                            const vf min = unit.min(scales, s, part);
                            acc[part][c] = fma(min, splat(dsum[c][at * (32 / S::SUB) + s]), acc[part][c]);
                        }
                    }
                }
                for (int c = 0; c < C; ++c) {
                    acc[part][c] = fma(value[c], splat(d[c][at]), acc[part][c]);
                }
            }
        }
    }
    for (int c = 0; c < C; ++c) {
        for (int part = 0; part < PARTS; ++part) {
            store(y[c] + part * LANES, acc[part][c]);
        }
    }
}

template <class P, int C> void few(const Linear& l, int64_t first, int64_t last, int64_t t) {
    for (int64_t row = first; row < last; row += GROUP) {
        prefetch_epilogue(l, row);
        float y[C][GROUP];
        group_product<P, C>(l, l.packed + row / GROUP * group_bytes<P>(l.cols), t, y);
        for (int c = 0; c < C; ++c) {
            finish16(l, t + c, row, y[c]);
        }
    }
}

template <class P> void fill_panel(const Linear& l, int64_t row, int64_t k, int depth, Panel& p) {
    using S = typename P::Scales;
    for (int g = 0; g < ROWS / GROUP; ++g) {
        const int at = g * GROUP;
        if (row + at >= l.rows) {
            for (int j = 0; j < depth / 4; ++j) {
                std::fill_n(p.codes[j] + at, GROUP, 0);
            }
            for (int s = 0; s < depth / S::SUB; ++s) {
                std::fill_n(p.scale[s] + at, GROUP, 0.0f);
                std::fill_n(p.min[s] + at, GROUP, 0.0f);
            }
            continue;
        }
        const uint8_t* group = l.packed + (row + at) / GROUP * group_bytes<P>(l.cols) + k / P::UNIT * P::UNIT_BYTES;
        for (int c = 0; c < depth; c += P::UNIT, group += P::UNIT_BYTES) {
            for (int part = 0; part < PARTS; ++part) {
                const typename S::Unit unit(group, part);
                for (int i = 0; i < P::RUNS; ++i) {
                    const uint8_t* run = group + S::UNIT_BYTES + i * P::RUN_BYTES;
                    const int word = c / 4 + 8 * i;
#pragma GCC unroll 8
                    for (int j = 0; j < 8; ++j) {
                        const vi w = P::codes(run, j, part);
                        std::memcpy(p.codes[word + j] + at + part * LANES, &w, sizeof w);
                    }
                    for (int s = 0; s < 32 / S::SUB; ++s) {
                        const int sub = (c + 32 * i) / S::SUB + s;
                        store(p.scale[sub] + at + part * LANES, unit.scale(run + P::Store::SIZE, s, part));
                        if constexpr (S::MIN) {
                            store(p.min[sub] + at + part * LANES, unit.min(run + P::Store::SIZE, s, part));
                        }
                    }
                }
            }
        }
    }
}

template <class P> void linear(const Linear& l, int64_t first, int64_t last) {
    constexpr int64_t FEW = 4;
    if (l.columns > FEW) {
        using Format = PanelFormat<P::Scales::SUB, P::Scales::MIN, P::SIGNED, P::OFFSET>;
        sweep_panels<Format>(l, first, last, [&l](int64_t row, int64_t k, int depth, Panel& p) {
            fill_panel<P>(l, row, k, depth, p);
        });
        return;
    }
    switch (l.columns) {
    case 1: few<P, 1>(l, first, last, 0); break;
    case 2: few<P, 2>(l, first, last, 0); break;
    case 3: few<P, 3>(l, first, last, 0); break;
    case 4: few<P, 4>(l, first, last, 0); break;
    }
}

template <class P> PackedKernels kernels_of() { return {group_bytes<P>, pack<P>, linear<P>}; }

} // namespace

void add_linear_packed(KernelTable& k) {
    PackedKernels* by_type = k.engine.packed;
    by_type[Q4_0] = kernels_of<Q4_0Packed>();
    by_type[Q8_0] = kernels_of<Q8_0Packed>();
    by_type[IQ4_NL] = kernels_of<IQ4_NLPacked>();
    by_type[NVFP4] = kernels_of<NVFP4Packed>();
    by_type[Q4_K] = kernels_of<KPacked<Q4_KCodes>>();
    by_type[Q5_K] = kernels_of<KPacked<Q5_KCodes>>();
    by_type[Q6_K] = kernels_of<Q6_KPacked>();
    by_type[IQ4_XS] = kernels_of<IQ4_XSPacked>();
}

} // namespace lg::LG_ISA
