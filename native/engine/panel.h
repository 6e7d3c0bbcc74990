// Many columns: panels of packed weights are unpacked to bytes in the first-level cache and swept over the columns.
#pragma once

#include <algorithm>

#include "columns.h"
#include "epilogue.h"

namespace lg::LG_ISA {

constexpr int ROWS = 48;
constexpr int DEPTH = 256; // a multiple of every unit

// A tile is RV vectors of rows by C columns: as many sums as there are registers for.
#if defined(LG_ISA_avx512)
constexpr int RV = 3, C = 4;
#elif defined(__aarch64__)
constexpr int RV = 3, C = 4;
#else
constexpr int RV = 2, C = 2;
#endif

// ROWS rows of DEPTH weights or fewer: codes by fours, row by row within them; scales and mins row by row.
struct Panel {
    alignas(64) int32_t codes[DEPTH / 4][ROWS];
    alignas(64) float scale[DEPTH / 16][ROWS];
    alignas(64) float min[DEPTH / 16][ROWS];
};

// The groups of rows from `row` on, weights [k, k + depth), into the panel; how many groups there are.
template <class P> int fill_panel(const Linear& l, int64_t group_bytes, int64_t row, int64_t k, int depth, Panel& p) {
    using S = typename P::Scales;
    const int groups = int(std::min<int64_t>(ROWS, l.rows - row) + GROUP - 1) / GROUP;
    for (int g = 0; g < groups; ++g) {
        const uint8_t* unit = l.packed + (row / GROUP + g) * group_bytes + k / P::UNIT * P::UNIT_BYTES;
        for (int c = 0; c < depth; c += P::UNIT, unit += P::UNIT_BYTES) {
            for (int part = 0; part < PARTS; ++part) {
                const int at = g * GROUP + part * LANES;
                const typename S::Unit of_unit(unit, part);
                for (int i = 0; i < P::RUNS; ++i) {
                    const uint8_t* run = unit + S::UNIT_BYTES + i * P::RUN_BYTES;
#pragma GCC unroll 8
                    for (int j = 0; j < 8; ++j) {
                        store(p.codes[c / 4 + 8 * i + j] + at, P::codes(run, j, part));
                    }
                    for (int s = 0; s < 32 / S::SUB; ++s) {
                        const int sub = (c + 32 * i) / S::SUB + s;
                        store(p.scale[sub] + at, of_unit.scale(run + P::Store::SIZE, s, part));
                        if constexpr (S::MIN) {
                            store(p.min[sub] + at, of_unit.min(run + P::Store::SIZE, s, part));
                        }
                    }
                }
            }
        }
    }
    return groups;
}

// What the next panel is made of, asked for a few lines at a time while this one is swept: a panel reads from some groups,
// which lie far apart.
template <class P> class NextPanel {
  public:
    // The panel at row `row` and weight k, or none if the row is not below `last`; `turns`: how often `ask` is called.
    NextPanel(const Linear& l, int64_t group_bytes, int64_t row, int64_t last, int64_t k, int64_t turns)
        : from_(l.packed + row / GROUP * group_bytes + k / P::UNIT * P::UNIT_BYTES), group_bytes_(group_bytes),
          lines_((std::min<int64_t>(DEPTH, l.cols - k) / P::UNIT * P::UNIT_BYTES + 63) / 64) {
        count_ = row < last ? (std::min<int64_t>(ROWS, l.rows - row) + GROUP - 1) / GROUP * lines_ : 0;
        each_ = (count_ + turns - 1) / turns;
    }
    void ask() {
        for (const int64_t end = std::min(count_, at_ + each_); at_ < end; ++at_) {
            __builtin_prefetch(from_ + at_ / lines_ * group_bytes_ + at_ % lines_ * 64, 0, 2);
        }
    }

  private:
    const uint8_t* from_;
    int64_t group_bytes_, lines_, count_, each_, at_ = 0; // lines_: of one group
};

// R vectors of rows by N columns over a panel's depth, added to acc [N][ROWS]. Not inlined and unrolled, or GCC 12 keeps sums
// in memory.
template <class P, int R, int N>
[[gnu::noinline]] void tile(const Panel& p, int row, int depth, const Columns<N>& x, float* acc) {
    using S = typename P::Scales;
    vf total[R][N];
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            total[r][c] = load(acc + c * ROWS + row + r * LANES);
        }
    }
    for (int run = 0; run < depth / 32; ++run) {
        vf value[R][N];
#pragma GCC unroll 2
        for (int i = 0; i < 32 / S::SUB; ++i) {
            const int s = run * (32 / S::SUB) + i;
            vi dots[R][N];
#pragma GCC unroll 8
            for (int c = 0; c < N; ++c) {
                const vi start = P::OFFSET ? splat(x.start[c][s]) : vi{};
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    dots[r][c] = start;
                }
            }
#pragma GCC unroll 8
            for (int word = 0; word < S::SUB / 4; ++word) {
                const int j = s * (S::SUB / 4) + word;
                vi w[R];
#pragma GCC unroll 8
                for (int r = 0; r < R; ++r) {
                    std::memcpy(&w[r], p.codes[j] + row + r * LANES, sizeof w[r]);
                }
#pragma GCC unroll 8
                for (int c = 0; c < N; ++c) {
                    const vi four = in_register(word_of(x.codes[c] + 4 * j));
#pragma GCC unroll 8
                    for (int r = 0; r < R; ++r) {
                        dots[r][c] = dot_lanes<P::SIGNED>(dots[r][c], w[r], four);
                    }
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const vf scale = load(p.scale[s] + row + r * LANES);
#pragma GCC unroll 8
                for (int c = 0; c < N; ++c) {
                    const vf dot = to_float(dots[r][c]);
                    value[r][c] = i == 0 ? dot * scale : fma(dot, scale, value[r][c]);
                }
                if constexpr (S::MIN) {
                    const vf min = load(p.min[s] + row + r * LANES);
#pragma GCC unroll 8
                    for (int c = 0; c < N; ++c) {
                        total[r][c] = fma(min, splat(x.dsum[c][s]), total[r][c]);
                    }
                }
            }
        }
#pragma GCC unroll 8
        for (int c = 0; c < N; ++c) {
            const vf d = splat(x.d[c][run]);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                total[r][c] = fma(value[r][c], d, total[r][c]);
            }
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < N; ++c) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            store(acc + c * ROWS + row + r * LANES, total[r][c]);
        }
    }
}

// All rows of a panel with N columns.
template <class P, int N> void tiles(const Panel& p, int groups, int depth, const Columns<N>& x, float* acc) {
    int part = 0;
    for (; part + RV <= groups * PARTS; part += RV) {
        tile<P, RV, N>(p, part * LANES, depth, x, acc);
    }
    for (; part < groups * PARTS; ++part) {
        tile<P, 1, N>(p, part * LANES, depth, x, acc);
    }
}

template <class P> void sweep_panels(const Linear& l, int64_t group_bytes, int64_t first, int64_t last) {
    thread_local static Scratch<float> sums;
    thread_local static Scratch<Panel> panels;
    thread_local static Scratch<int32_t> start_memory;
    float* acc = sums.get(l.columns * ROWS);
    Panel& p = *panels.get(1);
    const int32_t* start = starts<P>(l, start_memory);
    EndsAhead ends(l);
    for (int64_t row = first; row < last; row += ROWS) {
        std::fill_n(acc, l.columns * ROWS, 0.0f);
        ends.begin(row, std::min(row + ROWS, last), (l.cols + DEPTH - 1) / DEPTH * (l.columns / C));
        int groups = 0;
        for (int64_t k = 0; k < l.cols; k += DEPTH) {
            const int depth = int(std::min<int64_t>(DEPTH, l.cols - k));
            groups = fill_panel<P>(l, group_bytes, row, k, depth, p);
            const bool end = k + DEPTH >= l.cols;
            NextPanel<P> next(l, group_bytes, end ? row + ROWS : row, last, end ? 0 : k + DEPTH, l.columns / C);
            int64_t t = 0;
            for (; t + C <= l.columns; t += C) {
                next.ask();
                ends.ask<2>(); // the first-level cache is full
                tiles<P, C>(p, groups, depth, columns_at<P, C>(l, start, t, k), acc + t * ROWS);
            }
            for (; t < l.columns; ++t) {
                tiles<P, 1>(p, groups, depth, columns_at<P, 1>(l, start, t, k), acc + t * ROWS);
            }
        }
        for (int64_t t = 0; t < l.columns; ++t) {
            for (int g = 0; g < groups; ++g) {
                finish16(l, t, row + g * GROUP, acc + t * ROWS + g * GROUP);
            }
        }
    }
}

} // namespace lg::LG_ISA
