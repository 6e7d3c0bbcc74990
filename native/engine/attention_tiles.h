// Tiles of attention: some query rows by some vectors of keys, or of values, held in registers. Every sum takes its
// terms one by one, in the order of dimensions or of keys, whatever the tile's size.
#pragma once

#include <algorithm>
#include <utility>

#include "engine/kv_pages.h"
#include "simd/simd.h"

// Unrolls a loop early enough for arrays to become registers.
#define LG_UNROLL _Pragma("GCC unroll 8")

namespace lg::LG_ISA {

constexpr int ROWS = LANES == 16 ? 8 : 4; // of a tile, at most
#if defined(__aarch64__) || LG_ISA_avx512
template <int R> constexpr int TILE_VECTORS = R <= 4 ? 4 : 2; // 32 registers
#else
template <int R> constexpr int TILE_VECTORS = 2;
#endif
constexpr int64_t LEAST_KEYS = TILE_VECTORS<ROWS> * LANES; // of a tile of scores; the others' are multiples
// Floats from one row's scores to the next's: no multiple of 4096 bytes, whose lines would push each other out.
constexpr int64_t PITCH = SPAN + 16;

template <KvType T> constexpr int64_t SIZE = T == KvType::F32 ? 4 : T == KvType::F16 ? 2 : 1;

template <KvType T> inline vf load_stored(const uint8_t* p) {
    if constexpr (T == KvType::F32) {
        return load(reinterpret_cast<const float*>(p));
    } else if constexpr (T == KvType::F16) {
        return load_half(p);
    } else {
        return load_codes(p);
    }
}

// Keys or values of one head in one page.
struct Region {
    const uint8_t* data;
    const uint8_t* scales;
};

inline Region keys_of(const KvLayout& l, const uint8_t* head) { return {head, head + l.key_scales}; }
inline Region values_of(const KvLayout& l, const uint8_t* head) { return {head + l.values, head + l.value_scales}; }

// Asks for what the next tile will read at the same place: after a page comes another that lies elsewhere, which the
// processor does not guess.
template <KvType T, int N> inline void prefetch(const uint8_t* ahead) {
    constexpr int LINES = std::max<int>(1, int(N * LANES * SIZE<T> / 64));
    LG_UNROLL
    for (int i = 0; i < LINES; ++i) {
        __builtin_prefetch(ahead + i * 64);
    }
}

// acc[r][j] += x[r * STRIDE] * v[j]
template <int R, int N, int64_t STRIDE> inline void add_products(vf (&acc)[R][N], const float* x, const vf (&v)[N]) {
    LG_UNROLL
    for (int r = 0; r < R; ++r) {
        const vf factor = splat(x[r * STRIDE]);
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            acc[r][j] = fma(factor, v[j], acc[r][j]);
        }
    }
}

// s[r * PITCH + key] = q[r] . k[key] for TILE_VECTORS<R> vectors of keys from key `at` of a page on. q: [dim][ROWS].
template <KvType T, int R>
void score_tile(const KvLayout& l, const Region& keys, const Region& next, int64_t at, const float* q, float* s) {
    constexpr int N = TILE_VECTORS<R>;
    const uint8_t* key[N];
    int64_t first_scale[N] = {};
    LG_UNROLL
    for (int j = 0; j < N; ++j) {
        const int64_t key_number = at + j * LANES, block = key_number / BLOCK_KEYS, lane = key_number % BLOCK_KEYS;
        key[j] = keys.data + (block * l.key_width * BLOCK_KEYS + lane) * SIZE<T>;
        first_scale[j] = block * (l.key_width / KV_GROUP) * BLOCK_KEYS + lane;
    }
    const uint8_t* ahead = next.data + at * l.key_width * SIZE<T>;
    vf acc[R][N];
    LG_UNROLL
    for (int r = 0; r < R; ++r) {
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            acc[r][j] = vf{};
        }
    }
    // The width is at least 1: tested behind, the loop leaves the sums in registers.
    int64_t d = 0;
    do {
        if constexpr (T == KvType::Q8_0) {
            vf scale[N];
            LG_UNROLL
            for (int j = 0; j < N; ++j) {
                scale[j] = load_half(keys.scales + (first_scale[j] + d / 2) * 2);
            }
            prefetch<KvType::F16, N>(next.scales + (at * (l.key_width / KV_GROUP) + d / KV_GROUP * N * LANES) * 2);
            for (const int64_t end = d + KV_GROUP; d < end; ++d) {
                vf k[N];
                LG_UNROLL
                for (int j = 0; j < N; ++j) {
                    k[j] = load_codes(key[j] + d * BLOCK_KEYS) * scale[j];
                }
                prefetch<T, N>(ahead + d * N * LANES);
                add_products<R, N, 1>(acc, q + d * ROWS, k);
            }
        } else {
            vf k[N];
            LG_UNROLL
            for (int j = 0; j < N; ++j) {
                k[j] = load_stored<T>(key[j] + d * BLOCK_KEYS * SIZE<T>);
            }
            prefetch<T, N>(ahead + d * N * LANES * SIZE<T>);
            add_products<R, N, 1>(acc, q + d * ROWS, k);
            ++d;
        }
    } while (d < l.key_width);
    LG_UNROLL
    for (int r = 0; r < R; ++r) {
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            store(s + r * PITCH + j * LANES, acc[r][j]);
        }
    }
}

// y[r][e] += p[r * PITCH + key] * v[key][e] over keys [from, to) of a page, for N vectors of elements from `at` on.
template <KvType T, int R, int N>
inline void value_columns(const KvLayout& l, const Region& values, const Region& next, int64_t from, int64_t to, int at,
                          const float* p, float* y) {
    const int64_t step = l.value_width * SIZE<T>, groups = l.value_width / KV_GROUP;
    const uint8_t* value = values.data + at * SIZE<T>;
    const uint8_t* ahead = next.data + at * SIZE<T>;
    vf acc[R][N];
    LG_UNROLL
    for (int r = 0; r < R; ++r) {
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            acc[r][j] = load(y + r * l.value_width + at + j * LANES);
        }
    }
    int64_t key = from;
    do {
        vf v[N];
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            v[j] = load_stored<T>(value + key * step + j * LANES * SIZE<T>);
            if constexpr (T == KvType::Q8_0) {
                v[j] *= half_at(values.scales + (key * groups + (at + j * LANES) / KV_GROUP) * 2);
            }
        }
        prefetch<T, N>(ahead + key * step);
        if constexpr (T == KvType::Q8_0) {
            __builtin_prefetch(next.scales + key * groups * 2);
        }
        add_products<R, N, PITCH>(acc, p + key, v);
    } while (++key < to);
    LG_UNROLL
    for (int r = 0; r < R; ++r) {
        LG_UNROLL
        for (int j = 0; j < N; ++j) {
            store(y + r * l.value_width + at + j * LANES, acc[r][j]);
        }
    }
}

// The same for all elements of the values. from < to.
template <KvType T, int R>
void value_tile(const KvLayout& l, const Region& values, const Region& next, int64_t from, int64_t to, const float* p,
                float* y) {
    constexpr int N = TILE_VECTORS<R>;
    int at = 0;
    for (; at + N * LANES <= l.value_width; at += N * LANES) {
        value_columns<T, R, N>(l, values, next, from, to, at, p, y);
    }
    if constexpr (N == 4) {
        for (; at + 2 * LANES <= l.value_width; at += 2 * LANES) {
            value_columns<T, R, 2>(l, values, next, from, to, at, p, y);
        }
    }
    for (; at < l.value_width; at += LANES) {
        value_columns<T, R, 1>(l, values, next, from, to, at, p, y);
    }
}

// The tiles by number of rows.
struct Tiles {
    void (*score[ROWS])(const KvLayout&, const Region&, const Region&, int64_t, const float*, float*);
    void (*value[ROWS])(const KvLayout&, const Region&, const Region&, int64_t, int64_t, const float*, float*);
    int64_t keys[ROWS]; // that score[] computes
};

template <KvType T, int... I> constexpr Tiles make_tiles(std::integer_sequence<int, I...>) {
    return {{score_tile<T, I + 1>...}, {value_tile<T, I + 1>...}, {TILE_VECTORS<I + 1> * LANES...}};
}

inline const Tiles& tiles_of(KvType type) {
    using Counts = std::make_integer_sequence<int, ROWS>;
    static constexpr Tiles tiles[] = {make_tiles<KvType::F32>(Counts{}), make_tiles<KvType::F16>(Counts{}),
                                      make_tiles<KvType::Q8_0>(Counts{})};
    return tiles[int(type)];
}

} // namespace lg::LG_ISA
