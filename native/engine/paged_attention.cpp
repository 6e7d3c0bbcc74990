// Causal attention over pages of keys and values, a tile of query rows at a time. The softmax is computed over spans of
// keys, whose results are merged in order (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao et al. 2022, arXiv
// 2205.14135). Every sum runs over one row's own keys in ascending order, whatever rows share its tile, so that a row's
// result is the same to the bit in any company. Scores are powers of 2: q is multiplied by log2(e) ahead.
#include "engine/attention_tiles.h"
#include "engine/softmax.h"
#include "kernels.h"

#include <algorithm>
#include <limits>

namespace lg::LG_ISA {

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

// Up to ATTEND_ROWS rows at work.
class Work {
  public:
    Work(const HeadRows& a, int64_t first, int64_t last, float* scratch)
        : a_(a), l_(*a.layout), tiles_(tiles_of(a.layout->type)), first_(first), n_(int(last - first)) {
        q_ = scratch;
        scores_ = q_ + ATTEND_ROWS * l_.key_width;
        span_y_ = scores_ + ATTEND_ROWS * PITCH;
        y_ = span_y_ + ATTEND_ROWS * l_.value_width;
        std::fill_n(y_, n_ * l_.value_width, 0.0f);
        std::fill_n(largest_, ATTEND_ROWS, -INF);
        std::fill_n(total_, ATTEND_ROWS, 0.0f);
        std::fill_n(span_largest_, ATTEND_ROWS, -INF);
        std::fill_n(span_total_, ATTEND_ROWS, UNSEEN);
    }

    // q as the tiles want it, [tile][dim][ROWS], with what scores are multiplied by.
    void pack_queries() {
        const float factor = a_.soft_cap != 0.0f ? a_.scale / a_.soft_cap : a_.scale * LOG2E;
        for (int i = 0; i < n_; ++i) {
            const int64_t row = first_ + i;
            const float* from = a_.q + row / a_.group * a_.q_stride + row % a_.group * l_.key_dim;
            float* to = queries_of(i) + i % ROWS;
            for (int d = 0; d < l_.key_width; ++d) {
                to[d * ROWS] = d < l_.key_dim ? from[d] * factor : 0.0f;
            }
        }
    }

    int64_t first_span() const {
        return first_seen_at(a_, position(0)) / SPAN;
    }
    int64_t end_span() const { return position(n_ - 1) / SPAN + 1; }

    // The softmax over one span and the values weighted by it, of every row. `more`: the next span comes next.
    void span(int64_t number, bool more) {
        const int64_t base = number * SPAN;
        int64_t start = SPAN, end = 0;
        for (int i = 0; i < n_; ++i) {
            from_[i] = std::clamp<int64_t>(first_seen_at(a_, position(i)) - base, 0, SPAN);
            to_[i] = std::clamp<int64_t>(position(i) + 1 - base, 0, SPAN);
            if (from_[i] < to_[i]) {
                start = std::min(start, from_[i]);
                end = std::max(end, to_[i]);
            }
        }
        const int64_t first = start / PAGE_POSITIONS, last = (end - 1) / PAGE_POSITIONS; // pages of the span
        const auto keys = [&](int64_t page) { return keys_of(l_, head(number, page)); };
        const auto values = [&](int64_t page) { return values_of(l_, head(number, page)); };
        for (int64_t page = first; page <= last; ++page) {
            score_page(keys(page), page < last ? keys(page + 1) : values(first), page * PAGE_POSITIONS);
        }
        for (int i = 0; i < n_; ++i) {
            if (a_.slopes && from_[i] < to_[i]) {
                slope(scores_ + i * PITCH, i, base);
            }
            span_largest_[i] = from_[i] < to_[i] ? mask(scores_ + i * PITCH, from_[i], to_[i]) : -INF;
        }
        for (int i = 0; i < n_; ++i) {
            span_total_[i] = from_[i] < to_[i] ? weights(scores_ + i * PITCH, from_[i], to_[i], span_largest_[i]) : UNSEEN;
        }
        std::fill_n(span_y_, n_ * l_.value_width, 0.0f);
        for (int64_t page = first; page <= last; ++page) {
            const Region next = page < last ? values(page + 1) : more ? keys(SPAN / PAGE_POSITIONS) : values(page);
            for (int tile = 0; tile < n_; tile += ROWS) {
                value_page(values(page), next, page * PAGE_POSITIONS, tile, std::min(n_ - tile, ROWS));
            }
        }
    }

    void store_partials(float* partials) const {
        for (int i = 0; i < n_; ++i) {
            float* p = partials + i * partial_floats(l_);
            p[0] = span_largest_[i];
            p[1] = span_total_[i];
            std::copy_n(span_y_ + i * l_.value_width, l_.value_width, p + PARTIAL_VALUES);
        }
    }

    void load_partials(const float* partials) {
        for (int i = 0; i < n_; ++i) {
            const float* p = partials + i * partial_floats(l_);
            span_largest_[i] = p[0];
            span_total_[i] = p[1];
            std::copy_n(p + PARTIAL_VALUES, l_.value_width, span_y_ + i * l_.value_width);
        }
    }

    // Adds the span to what those before it left.
    void merge() {
        float before[ATTEND_ROWS], here[ATTEND_ROWS];
        for (int i = 0; i < n_; i += LANES) {
            const vf old = load(largest_ + i), fresh = load(span_largest_ + i), sum = load(span_total_ + i);
            const vf top = max(old, fresh), shrink = exp2(old - top), part = exp2(fresh - top);
            const vi unseen = sum < 0.0f;
            store(before + i, shrink);
            store(here + i, part);
            store(largest_ + i, unseen ? old : top);
            store(total_ + i, unseen ? load(total_ + i) : fma(sum, part, load(total_ + i) * shrink));
        }
        for (int i = 0; i < n_; ++i) {
            if (span_total_[i] < 0.0f) {
                continue;
            }
            float *y = y_ + i * l_.value_width, *span_y = span_y_ + i * l_.value_width;
            for (int d = 0; d < l_.value_width; d += LANES) {
                store(y + d, fma(load(span_y + d), splat(here[i]), load(y + d) * before[i]));
            }
        }
    }

    // Divides by the sum of the weights, the sink's among them, and writes the rows.
    void finish() {
        const int dim = l_.value_dim, width = l_.value_width;
        for (int i = 0; i < n_; ++i) {
            const int64_t row = first_ + i;
            float *y = y_ + i * width, part = 1.0f, total = total_[i];
            if (a_.sinks) {
                const float sink = a_.sinks[row % a_.group] * LOG2E, top = std::max(largest_[i], sink);
                part = exp2(splat(largest_[i] - top))[0];
                total = total * part + exp2(splat(sink - top))[0];
            }
            for (int d = 0; d < width; d += LANES) {
                store(y + d, load(y + d) * part / total);
            }
            std::copy_n(y, dim, a_.y + row / a_.group * a_.y_stride + row % a_.group * dim);
        }
    }

  private:
    static constexpr float UNSEEN = -1.0f; // the total of a row that sees nothing of the span

    int64_t position(int i) const { return a_.position + (first_ + i) / a_.group; }
    float* queries_of(int i) const { return q_ + int64_t(i / ROWS) * l_.key_width * ROWS; }
    const uint8_t* head(int64_t span, int64_t page) const {
        return a_.pages[span * (SPAN / PAGE_POSITIONS) + page - a_.first_page]->data + a_.offset;
    }

    // The scores of keys [at, at + PAGE_POSITIONS) of the span, where rows see any of them.
    void score_page(const Region& keys, const Region& next, int64_t at) {
        for (int64_t key = 0; key < PAGE_POSITIONS; key += LEAST_KEYS) {
            for (int tile = 0; tile < n_; tile += ROWS) {
                const int n = std::min(n_ - tile, ROWS);
                const int64_t count = tiles_.keys[n - 1];
                // Rows are in order of position: the first sees furthest back, the last furthest ahead.
                if (key % count == 0 && at + key < to_[tile + n - 1] && at + key + count > from_[tile]) {
                    tiles_.score[n - 1](l_, keys, next, key, queries_of(tile), scores_ + tile * PITCH + at + key);
                }
            }
        }
    }

    // Takes from the scores of row i what its head's slope takes for each position that a key lies back.
    void slope(float* s, int i, int64_t base) const {
        const float step = a_.slopes[(first_ + i) % a_.group] * LOG2E;
        for (int64_t key = from_[i]; key < to_[i]; ++key) {
            s[key] += step * float(base + key - position(i));
        }
    }

    // Caps the scores [from, to) of a row, gives their neighbours in the same vectors no weight; the largest.
    float mask(float* s, int64_t from, int64_t to) const {
        const int64_t first = from / LANES * LANES, last = (to + LANES - 1) / LANES * LANES;
        if (a_.soft_cap != 0.0f) {
            for (int64_t i = first; i < last; i += LANES) {
                store(s + i, tanh(load(s + i)) * (a_.soft_cap * LOG2E));
            }
        }
        std::fill(s + first, s + from, -INF);
        std::fill(s + to, s + last, -INF);
        vf top = splat(-INF);
        for (int64_t i = first; i < last; i += LANES) {
            top = max(load(s + i), top);
        }
        return largest_lane(top);
    }

    // Turns scores into weights 2^(score - largest); their sum.
    static float weights(float* s, int64_t from, int64_t to, float largest) {
        vf total{};
        for (int64_t i = from / LANES * LANES; i < to; i += LANES) {
            const vf p = exp2(load(s + i) - largest);
            store(s + i, p);
            total += p;
        }
        return sum_of_lanes(total);
    }

    // Adds the values of keys [at, at + PAGE_POSITIONS) of the span to rows [tile, tile + n). What some of the rows do
    // not see is left to each row alone: 0 times a value that is no number would be no number.
    void value_page(const Region& values, const Region& next, int64_t at, int tile, int n) {
        const auto inside = [&](int64_t key) { return std::clamp<int64_t>(key - at, 0, PAGE_POSITIONS); };
        const int64_t all_from = inside(from_[tile + n - 1]), all_to = std::max(all_from, inside(to_[tile]));
        const float* p = scores_ + tile * PITCH + at;
        float* y = span_y_ + tile * l_.value_width;
        const auto alone = [&](int i, int64_t from, int64_t to) {
            if (from < to) {
                tiles_.value[0](l_, values, next, from, to, p + i * PITCH, y + i * l_.value_width);
            }
        };
        for (int i = 0; i < n; ++i) {
            alone(i, inside(from_[tile + i]), std::min(all_from, inside(to_[tile + i])));
        }
        if (all_from < all_to) {
            tiles_.value[n - 1](l_, values, next, all_from, all_to, p, y);
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
    float span_largest_[ATTEND_ROWS], span_total_[ATTEND_ROWS];
    float largest_[ATTEND_ROWS], total_[ATTEND_ROWS]; // of the spans so far
};

void attend(const HeadRows& a, int64_t first, int64_t last, float* scratch) {
    Work work(a, first, last, scratch);
    work.pack_queries();
    for (int64_t span = work.first_span(); span < work.end_span(); ++span) {
        work.span(span, span + 1 < work.end_span());
        work.merge();
    }
    work.finish();
}

void attend_span(const HeadRows& a, int64_t first, int64_t last, int64_t span, float* scratch, float* partials) {
    Work work(a, first, last, scratch);
    work.pack_queries();
    work.span(span, false);
    work.store_partials(partials);
}

void merge_spans(const HeadRows& a, int64_t first, int64_t last, const float* partials, int64_t spans, float* scratch) {
    Work work(a, first, last, scratch);
    for (int64_t span = 0; span < spans; ++span) {
        work.load_partials(partials + span * (last - first) * partial_floats(*a.layout));
        work.merge();
    }
    work.finish();
}

} // namespace

void add_paged_attention(KernelTable& k) { k.pages = {attend, attend_span, merge_spans}; }

} // namespace lg::LG_ISA
