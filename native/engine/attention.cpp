// Causal attention over the cache, a tile of queries and a stretch of keys at a time, with the softmax kept running
// (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135).
#include "kernels.h"
#include "engine/scratch.h"
#include "simd/simd.h"

#include <algorithm>
#include <limits>

namespace lg::LG_ISA {

namespace {

constexpr int64_t KEYS = 64;  // keys of a stretch
constexpr int QUERIES = 4;    // rows of a tile
constexpr int BLOCK_VECTORS = int(KEY_BLOCK) / LANES;

// scores[q][16] = q . k for one block of keys [head_dim][16].
inline void scores16(const float* const* q, const float* k, int head_dim, float* const* scores) {
    for (int part = 0; part < BLOCK_VECTORS; ++part) {
        vf acc[QUERIES] = {};
        for (int d = 0; d < head_dim; ++d) {
            const vf key = load(k + d * KEY_BLOCK + part * LANES);
            for (int i = 0; i < QUERIES; ++i) {
                acc[i] = fma(splat(q[i][d]), key, acc[i]);
            }
        }
        for (int i = 0; i < QUERIES; ++i) {
            store(scores[i] + part * LANES, acc[i]);
        }
    }
}

// y[q][:] += p[q][key] * v[key][:] over `n` keys.
inline void weighted_sum(const float (*p)[KEYS], const float* v, int64_t n, int head_dim, float* y) {
    int d = 0;
    for (; d + LANES <= head_dim; d += LANES) {
        vf acc[QUERIES];
        for (int i = 0; i < QUERIES; ++i) {
            acc[i] = load(y + i * head_dim + d);
        }
        for (int64_t key = 0; key < n; ++key) {
            const vf value = load(v + key * head_dim + d);
            for (int i = 0; i < QUERIES; ++i) {
                acc[i] = fma(splat(p[i][key]), value, acc[i]);
            }
        }
        for (int i = 0; i < QUERIES; ++i) {
            store(y + i * head_dim + d, acc[i]);
        }
    }
    for (; d < head_dim; ++d) {
        for (int i = 0; i < QUERIES; ++i) {
            for (int64_t key = 0; key < n; ++key) {
                y[i * head_dim + d] += p[i][key] * v[key * head_dim + d];
            }
        }
    }
}

// The running softmax of one query row.
struct Running {
    float largest = -std::numeric_limits<float>::infinity();
    float total = 0.0f;
};

// Turns the scores of keys [from, to) of a stretch into weights, the others into 0; rescales what was summed before.
inline void soften(float* s, int64_t from, int64_t to, float scale, Running& run, float* y, int head_dim) {
    std::fill_n(s, from, 0.0f);
    std::fill(s + to, s + KEYS, 0.0f);
    if (from >= to) {
        return;
    }
    float top = s[from];
    for (int64_t i = from; i < to; ++i) {
        top = std::max(top, s[i]);
    }
    top = std::max(run.largest, top * scale);
    if (top > run.largest) {
        const float shrink = run.total == 0.0f ? 0.0f : exp(splat(run.largest - top))[0];
        for (int d = 0; d < head_dim; ++d) {
            y[d] *= shrink;
        }
        run.total *= shrink;
        run.largest = top;
    }
    // Whole vectors, then the borders are cleared again.
    vf total{};
    for (int64_t i = from / LANES * LANES; i < to; i += LANES) {
        vf p = exp(fma(load(s + i), splat(scale), splat(-top)));
        if (i < from || i + LANES > to) {
            for (int lane = 0; lane < LANES; ++lane) {
                p[lane] = i + lane < from || i + lane >= to ? 0.0f : p[lane];
            }
        }
        store(s + i, p);
        total += p;
    }
    run.total += sum(total);
}

void attend(const CachedAttention& a, const HeadCache& cache, int kv_head, int64_t first, int64_t last) {
    thread_local static Scratch<float> memory;
    const int group = a.heads / a.kv_heads, hd = a.head_dim;
    float* y = memory.get(QUERIES * hd);
    alignas(64) float s[QUERIES][KEYS];
    for (int64_t row = first; row < last; row += QUERIES) {
        const int n = int(std::min<int64_t>(QUERIES, last - row));
        const float* q[QUERIES];
        float* out[QUERIES];
        int64_t position[QUERIES];
        for (int i = 0; i < QUERIES; ++i) {
            const int64_t r = row + std::min(i, n - 1); // a short tile repeats its last row
            const int64_t at = (r / group) * a.heads * hd + (kv_head * group + r % group) * hd;
            q[i] = a.q + at;
            out[i] = a.y + at;
            position[i] = a.past + r / group;
        }
        std::fill_n(y, QUERIES * hd, 0.0f);
        Running run[QUERIES];
        const int64_t end = position[n - 1] + 1;
        const int64_t start = a.window ? std::max<int64_t>(0, position[0] + 1 - a.window) / KEYS * KEYS : 0;
        for (int64_t key = start; key < end; key += KEYS) {
            const int64_t here = std::min(KEYS, end - key);
            for (int64_t b = 0; b < here; b += KEY_BLOCK) {
                float* scores[QUERIES] = {s[0] + b, s[1] + b, s[2] + b, s[3] + b};
                scores16(q, cache.k + (key + b) * hd, hd, scores);
            }
            for (int i = 0; i < QUERIES; ++i) {
                const int64_t low = a.window ? std::max<int64_t>(0, position[i] + 1 - a.window - key) : 0;
                const int64_t high = std::min(here, position[i] + 1 - key);
                soften(s[i], std::min(low, KEYS), std::max<int64_t>(high, 0), a.scale, run[i], y + i * hd, hd);
            }
            weighted_sum(s, cache.v + key * hd, here, hd, y);
        }
        for (int i = 0; i < n; ++i) {
            for (int d = 0; d < hd; ++d) {
                out[i][d] = y[i * hd + d] / run[i].total;
            }
        }
    }
}

} // namespace

void add_attention(KernelTable& k) { k.engine.attend = attend; }

} // namespace lg::LG_ISA
