// A tile of weights whose sub-blocks of N are searched lane by lane (search.h): transposed in, results out in the weights'
// order.
#pragma once

#include "quant/search.h"

namespace lg::LG_ISA {
namespace {

constexpr int WEIGHTS = 16384; // in a tile, at most; it and its weights' weights stay in the second cache
constexpr int G = 2;          // vectors of sub-blocks searched at once

// What a search says of every sub-block of a tile. Padded, as transposing 8 sub-blocks with 16 lanes reads past the end.
struct Searched {
    float scale[WEIGHTS / 16 + LANES];
    float low[WEIGHTS / 16 + LANES];    // negated minimum
    float weight[WEIGHTS / 16 + LANES]; // sum of the weights' weights
    float inverse[WEIGHTS / 16];        // how the search's codes were computed
    float from[WEIGHTS / 16];
};

// LANES rows of LANES floats, `stride` floats apart: out[i] gets element i of every row.
inline void transpose_from(const float* src, int64_t stride, vf* out) {
    for (int i = 0; i < LANES; ++i) {
        out[i] = load(src + i * stride);
    }
    transpose_stage<LANES / 2>(out);
}

// LANES * G sub-blocks of N: out[i * G + g] gets element i of vector g's sub-blocks.
template <int N>
inline void transpose_group(const float* src, vf* out) {
    for (int g = 0; g < G; ++g) {
        for (int c = 0; c < N; c += LANES) {
            vf block[LANES];
            transpose_from(src + g * LANES * N + c, N, block);
            for (int i = 0; i < LANES; ++i) {
                out[(c + i) * G + g] = block[i];
            }
        }
    }
}

struct NoOwnWeights {
    void operator()(const vf*, vf*) const {}
};

// Calls search(first sub-block, x, w) for every group of LANES * G sub-blocks, transposed. `weights`: the weights'
// weights in the same order as x, or null, when own(x, w) makes them. `n` weights, whole groups.
template <int N, class Own, class Search>
inline void each_group(const float* x, const float* weights, int n, Searched& out, Own own, Search search) {
    for (int s = 0; s < n / N; s += LANES * G) {
        vf xs[N * G], ws[N * G];
        transpose_group<N>(x + s * N, xs);
        if (weights) {
            transpose_group<N>(weights + s * N, ws);
            for (int g = 0; g < G; ++g) {
                vf sum = vf{};
                for (int i = 0; i < N; ++i) {
                    sum += ws[i * G + g];
                }
                store(out.weight + s + g * LANES, sum);
            }
        } else {
            own(xs, ws);
        }
        search(s, xs, ws);
    }
}

template <int N, int TOP, bool ABSOLUTE, class Own = NoOwnWeights>
inline void search_affine_tile(const float* x, const float* weights, int n, const AffineSearch& how, Searched& out,
                               Own own = {}) {
    each_group<N>(x, weights, n, out, own, [&](int s, const vf* xs, const vf* ws) {
        Affine<G> r;
        if (!search_affine<N, G, TOP, ABSOLUTE, false>(xs, ws, how, r)) {
            search_affine<N, G, TOP, ABSOLUTE, true>(xs, ws, how, r);
        }
        for (int g = 0; g < G; ++g) {
            store(out.scale + s + g * LANES, r.scale[g]);
            store(out.low + s + g * LANES, -r.low[g]);
            store(out.inverse + s + g * LANES, r.inverse[g]);
            store(out.from + s + g * LANES, r.from[g]);
        }
    });
}

template <int N, int HALF, class Own = NoOwnWeights>
inline void search_symmetric_tile(const float* x, const float* weights, int n, Searched& out, Own own = {}) {
    each_group<N>(x, weights, n, out, own, [&](int s, const vf* xs, const vf* ws) {
        const Symmetric<G> r = search_symmetric<N, G, HALF, false>(xs, ws);
        for (int g = 0; g < G; ++g) {
            store(out.scale + s + g * LANES, r.scale[g]);
            store(out.inverse + s + g * LANES, r.inverse[g]);
        }
    });
}

} // namespace
} // namespace lg::LG_ISA
