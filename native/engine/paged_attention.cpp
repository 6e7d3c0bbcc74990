// Causal attention over pages of keys and values, a tile of query rows at a time. The softmax is computed over spans of
// keys, whose results are merged in order (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv
// 2205.14135). Every sum runs over one row's own keys in ascending order, whatever rows share its tile, so that a row's
// result is the same to the bit in any company. Scores are powers of 2: q is multiplied by log2(e) ahead.
#include "kernels.h"
#include "simd/simd.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace lg::LG_ISA {

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float LOG2E = 1.44269504f;
// Rows of a tile, and vectors of keys or of values that it holds in registers.
constexpr int ROWS = LANES == 16 ? 8 : 4;
#if defined(__aarch64__) || LG_ISA_avx512
template <int R> constexpr int TILE = R <= 4 ? 4 : 2; // 32 registers
#else
template <int R> constexpr int TILE = 2;
#endif
constexpr int64_t LEAST_KEYS = TILE<ROWS> * LANES; // of a tile; the others are multiples
// Floats from one row's scores to the next: not a multiple of 4096 bytes, which would share lines of the cache.
constexpr int64_t PITCH = SPAN + 16;

// ---- arithmetic ----

// 2^x for x <= 0, exactly 0 from -127 on.
inline vf exp2(vf x) {
    x = max(splat(-127.0f), x); // a NaN stays
#if LG_ISA_avx512
    const vf n = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    const vf shifted = x + splat(12582912.0f); // the integer is in the last bits
    const vf n = shifted - splat(12582912.0f);
#endif
    const vf r = x - n;
    // A minimax polynomial for relative error, made by reweighted least squares; 1 at 0, as the largest score's weight is.
    vf p = splat(0.0001535336193f);
    p = fma(p, r, splat(0.001339887441f));
    p = fma(p, r, splat(0.009618437358f));
    p = fma(p, r, splat(0.05550332471f));
    p = fma(p, r, splat(0.2402264791f));
    p = fma(p, r, splat(0.6931472029f));
    p = fma(p, r, splat(1.0f));
#if LG_ISA_avx512
    const __mmask16 seen = _mm512_cmp_ps_mask((__m512)n, _mm512_set1_ps(-127.0f), _CMP_NEQ_UQ);
    return (vf)_mm512_maskz_scalef_ps(seen, (__m512)p, (__m512)n);
#else
    return p * floats((bits(shifted) + 127) << 23);
#endif
}

inline float exp2(float x) { return exp2(splat(x))[0]; }

// tanh(x) = (e^2x - 1) / (e^2x - 1 + 2), from e^-2|x| - 1 without cancellation near 0.
inline vf tanh(vf x) {
    const vf away = min(splat(40.0f), magnitude(x)) * splat(-2.0f * LOG2E); // min keeps a NaN
    const vf magic = splat(12582912.0f);
    const vf n = (away + magic) - magic;
    const vf r = away - n;
    vf p = splat(0.0001535336193f);
    p = fma(p, r, splat(0.001339887441f));
    p = fma(p, r, splat(0.009618437358f));
    p = fma(p, r, splat(0.05550332471f));
    p = fma(p, r, splat(0.2402264791f));
    p = fma(p, r, splat(0.6931472029f)) * r; // 2^r - 1
    const vf power = floats((bits(away + magic) + 127) << 23);
    const vf less = fma(power, p, power - 1.0f); // e^-2|x| - 1
    const vf t = -less / (less + 2.0f);
    return floats((bits(t) & 0x7FFFFFFF) | (bits(x) & int32_t(0x80000000)));
}

// ---- stored elements ----

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

// ---- scores: s[row][key] = q[row] . k[key] ----

// TILE<R> vectors of keys from key `at` of the page on. q: [dim][ROWS].
template <KvType T, int R>
void score_tile(const HeadRows& a, const uint8_t* head, int64_t at, const float* q, float* s) {
    constexpr int N = TILE<R>;
    const KvLayout& l = *a.layout;
    const uint8_t* key[N];
    for (int j = 0; j < N; ++j) {
        const int64_t first = at + j * LANES;
        key[j] = head + (first / BLOCK_KEYS * l.key_width * BLOCK_KEYS + first % BLOCK_KEYS) * SIZE<T>;
    }
    vf acc[R][N] = {};
    if constexpr (T == KvType::Q8_0) {
        for (int d = 0; d < l.key_width; d += KV_GROUP) {
            vf scale[N];
            for (int j = 0; j < N; ++j) {
                const int64_t first = at + j * LANES, groups = l.key_width / KV_GROUP;
                const int64_t block = (first / BLOCK_KEYS * groups + d / KV_GROUP) * BLOCK_KEYS + first % BLOCK_KEYS;
                scale[j] = load_half(head + l.key_scales + block * 2);
            }
            for (int i = d; i < d + KV_GROUP; ++i) {
                vf k[N];
                for (int j = 0; j < N; ++j) {
                    k[j] = load_codes(key[j] + i * BLOCK_KEYS) * scale[j];
                }
                for (int r = 0; r < R; ++r) {
                    const vf x = splat(q[i * ROWS + r]);
                    for (int j = 0; j < N; ++j) {
                        acc[r][j] = fma(x, k[j], acc[r][j]);
                    }
                }
            }
        }
    } else {
        for (int64_t d = 0; d < l.key_dim; ++d) {
            vf k[N];
            for (int j = 0; j < N; ++j) {
                k[j] = load_stored<T>(key[j] + d * BLOCK_KEYS * SIZE<T>);
            }
            for (int r = 0; r < R; ++r) {
                const vf x = splat(q[d * ROWS + r]);
                for (int j = 0; j < N; ++j) {
                    acc[r][j] = fma(x, k[j], acc[r][j]);
                }
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int j = 0; j < N; ++j) {
            store(s + r * PITCH + j * LANES, acc[r][j]);
        }
    }
}

// ---- values: y[row] += p[row][key] * v[key] ----

// Keys [from, to) of the page, N vectors of elements from `at` on. p: the weights from the page's first key on.
template <KvType T, int R, int N>
inline void value_columns(const KvLayout& l, const uint8_t* head, int64_t from, int64_t to, int at, const float* p,
                          float* y) {
    const uint8_t* value = head + l.values + at * SIZE<T>;
    const int64_t step = l.value_width * SIZE<T>;
    vf acc[R][N];
    for (int r = 0; r < R; ++r) {
        for (int j = 0; j < N; ++j) {
            acc[r][j] = load(y + r * l.value_width + at + j * LANES);
        }
    }
    for (int64_t key = from; key < to; ++key) {
        vf v[N];
        for (int j = 0; j < N; ++j) {
            v[j] = load_stored<T>(value + key * step + j * LANES * SIZE<T>);
            if constexpr (T == KvType::Q8_0) {
                const int64_t group = key * (l.value_width / KV_GROUP) + (at + j * LANES) / KV_GROUP;
                v[j] *= half_at(head + l.value_scales + group * 2);
            }
        }
        for (int r = 0; r < R; ++r) {
            const vf weight = splat(p[r * PITCH + key]);
            for (int j = 0; j < N; ++j) {
                acc[r][j] = fma(weight, v[j], acc[r][j]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int j = 0; j < N; ++j) {
            store(y + r * l.value_width + at + j * LANES, acc[r][j]);
        }
    }
}

template <KvType T, int R>
void value_tile(const HeadRows& a, const uint8_t* head, int64_t from, int64_t to, const float* p, float* y) {
    constexpr int N = TILE<R>;
    const KvLayout& l = *a.layout;
    int at = 0;
    for (; at + N * LANES <= l.value_width; at += N * LANES) {
        value_columns<T, R, N>(l, head, from, to, at, p, y);
    }
    for (; at < l.value_width; at += LANES) {
        value_columns<T, R, 1>(l, head, from, to, at, p, y);
    }
}

// The tiles by number of rows.
struct Tiles {
    void (*score[ROWS])(const HeadRows&, const uint8_t*, int64_t, const float*, float*);
    void (*value[ROWS])(const HeadRows&, const uint8_t*, int64_t, int64_t, const float*, float*);
    int64_t keys[ROWS]; // that score[] computes
};

template <KvType T, int... I> constexpr Tiles make_tiles(std::integer_sequence<int, I...>) {
    return {{score_tile<T, I + 1>...}, {value_tile<T, I + 1>...}, {TILE<I + 1> * LANES...}};
}

const Tiles& tiles_of(KvType type) {
    using Counts = std::make_integer_sequence<int, ROWS>;
    static constexpr Tiles tiles[] = {make_tiles<KvType::F32>(Counts{}), make_tiles<KvType::F16>(Counts{}),
                                      make_tiles<KvType::Q8_0>(Counts{})};
    return tiles[int(type)];
}

// ---- rows ----

// The softmax of a row so far.
struct Running {
    float largest = -INF, total = -1.0f; // negative: nothing seen yet
};

// Scores [from, to) of a span -> weights 2^(score - largest); the others of the vectors that hold them become 0.
inline Running soften(float* s, int64_t from, int64_t to, float cap) {
    const int64_t first = from / LANES * LANES, last = (to + LANES - 1) / LANES * LANES;
    std::fill(s + first, s + from, -INF);
    std::fill(s + to, s + last, -INF);
    vf top = splat(-INF);
    for (int64_t i = first; i < last; i += LANES) {
        vf v = load(s + i);
        if (cap != 0.0f) {
            v = tanh(v) * (cap * LOG2E);
            store(s + i, v);
        }
        top = max(v, top);
    }
    if (cap != 0.0f) { // tanh has made them finite
        std::fill(s + first, s + from, -INF);
        std::fill(s + to, s + last, -INF);
    }
    const float largest_score = largest(top);
    vf total{};
    for (int64_t i = first; i < last; i += LANES) {
        const vf p = exp2(load(s + i) - largest_score);
        store(s + i, p);
        total += p;
    }
    return {largest_score, sum(total)};
}

// Adds what one span left to what the spans before it left.
inline void merge(Running& run, float* y, const Running& span, const float* span_y, int width) {
    if (span.total < 0.0f) {
        return;
    }
    if (run.total < 0.0f) {
        run = span;
        std::copy_n(span_y, width, y);
        return;
    }
    const float top = std::max(run.largest, span.largest);
    const float old_part = exp2(run.largest - top), new_part = exp2(span.largest - top);
    for (int d = 0; d < width; d += LANES) {
        store(y + d, fma(load(span_y + d), splat(new_part), load(y + d) * old_part));
    }
    run = {top, run.total * old_part + span.total * new_part};
}

// Divides by the sum of the weights, the sink's among them, and writes the row.
inline void finish(const HeadRows& a, int64_t row, Running run, float* y) {
    float part = 1.0f;
    if (a.sinks) {
        const float sink = a.sinks[row % a.group] * LOG2E;
        const float top = std::max(run.largest, sink);
        part = exp2(run.largest - top);
        run.total = run.total * part + exp2(sink - top);
    }
    const int dim = a.layout->value_dim, width = a.layout->value_width;
    for (int d = 0; d < width; d += LANES) {
        store(y + d, load(y + d) * part / run.total);
    }
    std::copy_n(y, dim, a.y + row / a.group * a.y_stride + row % a.group * dim);
}

// Up to ATTEND_ROWS rows at work.
class Work {
  public:
    Work(const HeadRows& a, int64_t first, int64_t last, float* scratch)
        : a_(a), l_(*a.layout), tiles_(tiles_of(a.layout->type)), first_(first), n_(int(last - first)) {
        q_ = scratch;
        scores_ = q_ + ATTEND_ROWS * l_.key_width;
        span_y_ = scores_ + ATTEND_ROWS * PITCH;
        y_ = span_y_ + ATTEND_ROWS * l_.value_width;
    }

    // q as the tiles want it: [tile][dim][ROWS].
    void pack_queries() {
        const float factor = a_.soft_cap != 0.0f ? a_.scale / a_.soft_cap : a_.scale * LOG2E;
        for (int i = 0; i < n_; ++i) {
            const int64_t row = first_ + i;
            const float* from = a_.q + row / a_.group * a_.q_stride + row % a_.group * l_.key_dim;
            float* to = q_ + int64_t(i / ROWS) * l_.key_width * ROWS + i % ROWS;
            for (int d = 0; d < l_.key_width; ++d) {
                to[d * ROWS] = d < l_.key_dim ? from[d] * factor : 0.0f;
            }
        }
    }

    int64_t first_span() const {
        return a_.window ? std::max<int64_t>(0, position(0) + 1 - a_.window) / SPAN : 0;
    }
    int64_t end_span() const { return position(n_ - 1) / SPAN + 1; }

    // Fills span_[i] and span_y(i) of every row.
    void span(int64_t number) {
        const int64_t base = number * SPAN;
        int64_t start = SPAN, end = 0;
        for (int i = 0; i < n_; ++i) {
            from_[i] = a_.window ? std::clamp<int64_t>(position(i) + 1 - a_.window - base, 0, SPAN) : 0;
            to_[i] = std::clamp<int64_t>(position(i) + 1 - base, 0, SPAN);
            if (from_[i] < to_[i]) {
                start = std::min(start, from_[i]);
                end = std::max(end, to_[i]);
            }
        }
        const int64_t first_page = start / PAGE_POSITIONS, end_page = (end + PAGE_POSITIONS - 1) / PAGE_POSITIONS;
        for (int64_t page = first_page; page < end_page; ++page) {
            score_page(head_of(base, page), page * PAGE_POSITIONS);
        }
        for (int i = 0; i < n_; ++i) {
            span_[i] = from_[i] < to_[i] ? soften(scores_ + i * PITCH, from_[i], to_[i], a_.soft_cap) : Running{};
        }
        std::fill_n(span_y_, n_ * l_.value_width, 0.0f);
        for (int64_t page = first_page; page < end_page; ++page) {
            for (int tile = 0; tile < n_; tile += ROWS) {
                value_page(head_of(base, page), page * PAGE_POSITIONS, tile, std::min(n_ - tile, ROWS));
            }
        }
    }

    void merge_into_rows() {
        for (int i = 0; i < n_; ++i) {
            merge(rows_[i], y_ + i * l_.value_width, span_[i], span_y_ + i * l_.value_width, l_.value_width);
        }
    }

    void finish_rows() {
        for (int i = 0; i < n_; ++i) {
            finish(a_, first_ + i, rows_[i], y_ + i * l_.value_width);
        }
    }

    void store_partials(float* partials) const {
        for (int i = 0; i < n_; ++i) {
            float* p = partials + i * partial_floats(l_);
            p[0] = span_[i].largest;
            p[1] = span_[i].total;
            std::copy_n(span_y_ + i * l_.value_width, l_.value_width, p + PARTIAL_VALUES);
        }
    }

    void merge_partials(const float* partials) {
        for (int i = 0; i < n_; ++i) {
            const float* p = partials + i * partial_floats(l_);
            merge(rows_[i], y_ + i * l_.value_width, {p[0], p[1]}, p + PARTIAL_VALUES, l_.value_width);
        }
    }

  private:
    int64_t position(int i) const { return a_.position + (first_ + i) / a_.group; }

    const uint8_t* head_of(int64_t base, int64_t page) const {
        return a_.pages[base / PAGE_POSITIONS + page - a_.first_page]->data + a_.offset;
    }

    // The scores of keys [at, at + PAGE_POSITIONS) of the span, where the page's rows see any of them.
    void score_page(const uint8_t* head, int64_t at) {
        for (int64_t key = 0; key < PAGE_POSITIONS; key += LEAST_KEYS) {
            for (int tile = 0; tile < n_; tile += ROWS) {
                const int n = std::min(n_ - tile, ROWS);
                const int64_t keys = tiles_.keys[n - 1];
                // Rows are in order of position: the first sees furthest back, the last furthest ahead.
                if (key % keys == 0 && at + key < to_[tile + n - 1] && at + key + keys > from_[tile]) {
                    tiles_.score[n - 1](a_, head, key, q_ + int64_t(tile / ROWS) * l_.key_width * ROWS,
                                        scores_ + tile * PITCH + at + key);
                }
            }
        }
    }

    // Adds the values of keys [at, at + PAGE_POSITIONS) of the span to rows [tile, tile + n). What some of the rows do
    // not see is left to each row alone: 0 times a value that is no number would be no number.
    void value_page(const uint8_t* head, int64_t at, int tile, int n) {
        const auto inside = [&](int64_t key) { return std::clamp<int64_t>(key - at, 0, PAGE_POSITIONS); };
        const int64_t all_from = inside(from_[tile + n - 1]), all_to = std::max(all_from, inside(to_[tile]));
        const float* p = scores_ + tile * PITCH + at;
        float* y = span_y_ + tile * l_.value_width;
        const auto alone = [&](int i, int64_t from, int64_t to) {
            if (from < to) {
                tiles_.value[0](a_, head, from, to, p + i * PITCH, y + i * l_.value_width);
            }
        };
        for (int i = 0; i < n; ++i) {
            alone(i, inside(from_[tile + i]), std::min(all_from, inside(to_[tile + i])));
        }
        if (all_from < all_to) {
            tiles_.value[n - 1](a_, head, all_from, all_to, p, y);
        }
        for (int i = 0; i < n; ++i) {
            alone(i, std::max(all_to, inside(from_[tile + i])), inside(to_[tile + i]));
        }
    }

    const HeadRows& a_;
    const KvLayout& l_;
    const Tiles& tiles_;
    const int64_t first_;
    const int n_;
    float *q_, *scores_, *span_y_, *y_;
    int64_t from_[ATTEND_ROWS], to_[ATTEND_ROWS]; // the keys of the span that a row sees
    Running span_[ATTEND_ROWS], rows_[ATTEND_ROWS];
};

void attend(const HeadRows& a, int64_t first, int64_t last, float* scratch) {
    Work work(a, first, last, scratch);
    work.pack_queries();
    for (int64_t span = work.first_span(); span < work.end_span(); ++span) {
        work.span(span);
        work.merge_into_rows();
    }
    work.finish_rows();
}

void attend_span(const HeadRows& a, int64_t first, int64_t last, int64_t span, float* scratch, float* partials) {
    Work work(a, first, last, scratch);
    work.pack_queries();
    work.span(span);
    work.store_partials(partials);
}

void merge_spans(const HeadRows& a, int64_t first, int64_t last, const float* partials, int64_t spans, float* scratch) {
    Work work(a, first, last, scratch);
    for (int64_t span = 0; span < spans; ++span) {
        work.merge_partials(partials + span * (last - first) * partial_floats(*a.layout));
    }
    work.finish_rows();
}

} // namespace

void add_paged_attention(KernelTable& k) { k.pages = {attend, attend_span, merge_spans}; }

} // namespace lg::LG_ISA
