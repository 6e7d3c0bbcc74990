// Rounding with error feedback, then sweeps over the sub-blocks; see quants/feedback.py, which does the same operations in
// the same order. A lane is a row.
#include "quant/feedback.h"

#include "kernels.h"
#include "simd/half.h"
#include "simd/lanes.h"

#include <algorithm>
#include <limits>
#include <memory>

namespace lg::LG_ISA {
namespace {

constexpr int V = 2;              // vectors of rows in a tile
constexpr int TILE = V * LANES;   // rows of a tile
constexpr int MOST = 32;          // columns of a sub-block, at most
constexpr int AT_ONCE = LANES == 16 ? 8 : 4; // columns whose sums are kept in registers

// The half float whose bits, taken as sign and magnitude, are `number`.
inline vf half_of(vi number) {
    vf v;
    for (int i = 0; i < LANES; ++i) {
        const int32_t k = number[i];
        v[i] = float_from_half(uint16_t(k < 0 ? 0x8000 | -k : k));
    }
    return v;
}

inline vf look_up(const float* table, vi number) {
    vf v;
    for (int i = 0; i < LANES; ++i) {
        v[i] = table[number[i]];
    }
    return v;
}

struct Grid {
    const FeedbackJob& job;
    vf low, high;

    explicit Grid(const FeedbackJob& j) : job(j), low(splat(j.levels[0])), high(splat(j.levels[j.n_levels - 1])) {}

    vf scale(vi number, vf unit) const {
        return job.scale_table ? unit * look_up(job.scale_table, number) : half_of(number);
    }

    vf offset(vi number, vf unit) const {
        return job.offset_table ? -(unit * look_up(job.offset_table, number)) : half_of(number);
    }

    // The level nearest to v; of two as near, the even one where levels are whole numbers, else the upper one.
    vf level(vf v) const {
        v = min(max(v, low), high);
        if (job.uniform) {
            return (v + MAGIC) - MAGIC;
        }
        vf l = low;
        for (int i = 1; i < job.n_levels; ++i) {
            const vf step = splat(job.levels[i] - job.levels[i - 1]);
            l += v >= splat((job.levels[i] + job.levels[i - 1]) / 2) ? step : vf{};
        }
        return l;
    }
};

// What a sub-block of LANES rows was rounded to.
struct Rounded {
    vf level[MOST], value[MOST];
    vi scale, offset;
    vf loss;
};

// Rounds the targets `a` (errors count from `w`) column by column; keeps what has less loss than `best` has.
template <int N>
void try_scale(const Grid& grid, const vf* a, const vf* w, const float* factor, const float* pivots, vi scale, vi offset, vf unit,
               vf offset_unit, Rounded& best) {
    vf at[N], level[N], value[N];
    std::copy(a, a + N, at);
    const vf s = grid.scale(scale, unit);
    const vf m = grid.job.affine ? grid.offset(offset, offset_unit) : vf{};
    const vf inverse = s != 0.0f ? 1.0f / s : vf{};
    vf loss{};
    for (int j = 0; j < N; ++j) {
        level[j] = grid.level((at[j] - m) * inverse);
        value[j] = s * level[j] + m;
        const vf rest = at[j] - value[j], error = w[j] - value[j];
        loss += splat(pivots[j]) * rest * rest;
        const float* row = factor + j * N;
        for (int k = j + 1; k < N; ++k) {
            at[k] += error * splat(row[k]);
        }
    }
    const vi better = loss < best.loss;
    if (!any(better)) {
        return;
    }
    for (int j = 0; j < N; ++j) {
        best.level[j] = better ? level[j] : best.level[j];
        best.value[j] = better ? value[j] : best.value[j];
    }
    best.scale = better ? scale : best.scale;
    best.offset = better ? offset : best.offset;
    best.loss = better ? loss : best.loss;
}

// The loss of what stands.
template <int N>
vf loss_of(const vf* a, const vf* w, const float* factor, const float* pivots, const vf* value) {
    vf at[N];
    std::copy(a, a + N, at);
    vf loss{};
    for (int j = 0; j < N; ++j) {
        const vf rest = at[j] - value[j], error = w[j] - value[j];
        loss += splat(pivots[j]) * rest * rest;
        const float* row = factor + j * N;
        for (int k = j + 1; k < N; ++k) {
            at[k] += error * splat(row[k]);
        }
    }
    return loss;
}

// sums[k][v] += error[j][v] * panel[j][k] for j in [0, count), in this order. error: [count][V].
template <int N>
void add_products(vf* sums, const vf* error, const float* panel, int64_t count) {
    for (int k = 0; k < N; k += AT_ONCE) {
        vf sum[AT_ONCE][V];
        for (int i = 0; i < AT_ONCE; ++i) {
            for (int v = 0; v < V; ++v) {
                sum[i][v] = sums[(k + i) * V + v];
            }
        }
        const float* row = panel + k;
        for (int64_t j = 0; j < count; ++j, row += N) {
            for (int i = 0; i < AT_ONCE; ++i) {
                const vf factor = splat(row[i]);
                for (int v = 0; v < V; ++v) {
                    sum[i][v] += error[j * V + v] * factor;
                }
            }
        }
        for (int i = 0; i < AT_ONCE; ++i) {
            for (int v = 0; v < V; ++v) {
                sums[(k + i) * V + v] = sum[i][v];
            }
        }
    }
}

constexpr int64_t CACHED = 512; // columns whose errors stay in the first caches

template <int N>
void add_all_products(vf* sums, const vf* error, const float* panel, int64_t count) {
    for (int64_t j = 0; j < count; j += CACHED) {
        add_products<N>(sums, error + j * V, panel + j * N, std::min(CACHED, count - j));
    }
}

template <int N>
class Tile {
  public:
    Tile(const FeedbackJob& job, int64_t first, int count)
        : job_(job), grid_(job), first_(first), count_(count), subs_(job.cols / N), w_(new vf[size_t(job.cols * V)]),
          error_(new vf[size_t(job.cols * V)]) {
        for (int64_t c = 0; c < job.cols; ++c) {
            for (int v = 0; v < V; ++v) {
                w_[c * V + v] = gather(job.w, job.cols, c, v);
            }
        }
    }

    void forward() {
        for (int64_t b = 0; b < subs_; ++b) {
            vf a[N * V];
            std::copy(w_.get() + b * N * V, w_.get() + (b + 1) * N * V, a);
            const float* panel = job_.factor + b * (b + 1) / 2 * N * N;
            add_all_products<N>(a, error_.get(), panel, b * N);
            const float* factor = panel + b * N * N;
            for (int v = 0; v < V; ++v) {
                vf target[N], w[N];
                for (int j = 0; j < N; ++j) {
                    target[j] = a[j * V + v];
                    w[j] = w_[(b * N + j) * V + v];
                }
                Rounded best;
                best.loss = splat(std::numeric_limits<float>::infinity());
                best.scale = numbers(job_.scales, b, v);
                best.offset = job_.affine ? numbers(job_.offsets, b, v) : vi{};
                for (int j = 0; j < N; ++j) {
                    best.level[j] = best.value[j] = vf{};
                }
                search(target, w, factor, job_.pivots + b * N, b, v, job_.step, best);
                keep(b, v, best);
            }
        }
    }

    void read() {
        for (int64_t b = 0; b < subs_; ++b) {
            for (int v = 0; v < V; ++v) {
                const vf s = grid_.scale(numbers(job_.scales, b, v), unit(job_.units, b, v));
                const vf m = job_.affine ? grid_.offset(numbers(job_.offsets, b, v), unit(job_.offset_units, b, v)) : vf{};
                for (int64_t c = b * N; c < (b + 1) * N; ++c) {
                    error_[c * V + v] = w_[c * V + v] - (s * levels(c, v) + m);
                }
            }
        }
    }

    void sweep(int step) {
        for (int64_t b = 0; b < subs_; ++b) {
            vf g[N * V]{};
            add_all_products<N>(g, error_.get(), job_.h + b * job_.cols * N, job_.cols);
            vf t[N * V];
            for (int j = 0; j < N * V; ++j) {
                t[j] = w_[b * N * V + j] - error_[b * N * V + j];
            }
            add_products<N>(t, g, job_.block_inverse + b * N * N, N);
            const float* factor = job_.block_factor + b * N * N;
            const float* pivots = job_.block_pivots + b * N;
            for (int v = 0; v < V; ++v) {
                vf target[N];
                Rounded best;
                for (int j = 0; j < N; ++j) {
                    const int64_t c = b * N + j;
                    target[j] = t[j * V + v];
                    best.value[j] = w_[c * V + v] - error_[c * V + v];
                    best.level[j] = levels(c, v);
                }
                best.scale = numbers(job_.scales, b, v);
                best.offset = job_.affine ? numbers(job_.offsets, b, v) : vi{};
                best.loss = loss_of<N>(target, target, factor, pivots, best.value);
                search(target, target, factor, pivots, b, v, step, best);
                keep(b, v, best);
            }
        }
    }

    void write_losses() const {
        vf total[V]{};
        for (int64_t b = 0; b < subs_; ++b) {
            vf g[N * V]{};
            add_all_products<N>(g, error_.get(), job_.h + b * job_.cols * N, job_.cols);
            for (int j = 0; j < N * V; ++j) {
                const vf error = error_[b * N * V + j];
                total[j % V] += (g[j] - job_.damping * error) * error;
            }
        }
        for (int i = 0; i < count_; ++i) {
            job_.losses[first_ + i] = total[i / LANES][i % LANES];
        }
    }

  private:
    void search(const vf* target, const vf* w, const float* factor, const float* pivots, int64_t b, int v, int step,
                Rounded& best) const {
        const vf u = unit(job_.units, b, v), offset_unit = unit(job_.offset_units, b, v);
        const vi scale = best.scale, offset = best.offset;
        try_scale<N>(grid_, target, w, factor, pivots, scale, offset, u, offset_unit, best);
        if (step == 0) {
            return;
        }
        for (const int move : {-step, step}) {
            const vi number = min(max(scale + move, splat(job_.scale_low)), splat(job_.scale_high));
            try_scale<N>(grid_, target, w, factor, pivots, number, offset, u, offset_unit, best);
        }
        if (job_.affine) {
            const vi chosen = best.scale;
            for (const int move : {-step, step}) {
                const vi number = min(max(offset + move, splat(job_.offset_low)), splat(job_.offset_high));
                try_scale<N>(grid_, target, w, factor, pivots, chosen, number, u, offset_unit, best);
            }
        }
    }

    void keep(int64_t b, int v, const Rounded& best) {
        for (int j = 0; j < N; ++j) {
            const int64_t c = b * N + j;
            error_[c * V + v] = w_[c * V + v] - best.value[j];
            for (int i = 0; i < LANES && v * LANES + i < count_; ++i) {
                job_.rounded[(first_ + v * LANES + i) * job_.cols + c] = int8_t(best.level[j][i]);
            }
        }
        for (int i = 0; i < LANES && v * LANES + i < count_; ++i) {
            const int64_t at = (first_ + v * LANES + i) * subs_ + b;
            job_.scales[at] = best.scale[i];
            if (job_.affine) {
                job_.offsets[at] = best.offset[i];
            }
        }
    }

    // The row of lane i of vector v; lanes beyond the last row repeat it.
    int64_t row(int v, int i) const { return first_ + std::min(v * LANES + i, count_ - 1); }

    vf gather(const float* values, int64_t stride, int64_t column, int v) const {
        vf x;
        for (int i = 0; i < LANES; ++i) {
            x[i] = values[row(v, i) * stride + column];
        }
        return x;
    }

    vf unit(const float* units, int64_t b, int v) const { return units ? gather(units, subs_, b, v) : splat(1.0f); }

    vi numbers(const int32_t* values, int64_t b, int v) const {
        vi x;
        for (int i = 0; i < LANES; ++i) {
            x[i] = values[row(v, i) * subs_ + b];
        }
        return x;
    }

    vf levels(int64_t c, int v) const {
        vf x;
        for (int i = 0; i < LANES; ++i) {
            x[i] = float(job_.rounded[row(v, i) * job_.cols + c]);
        }
        return x;
    }

    const FeedbackJob& job_;
    const Grid grid_;
    const int64_t first_;
    const int count_;
    const int64_t subs_;
    std::unique_ptr<vf[]> w_, error_; // [cols][V]
};

template <int N>
void round_rows(const FeedbackJob& job, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row += TILE) {
        Tile<N> tile(job, row, int(std::min<int64_t>(TILE, last - row)));
        if (job.forward) {
            tile.forward();
        } else {
            tile.read();
        }
        for (int i = 0; i < job.n_sweeps; ++i) {
            tile.sweep(job.sweeps[i]);
        }
        if (job.losses) {
            tile.write_losses();
        }
    }
}

void round(const FeedbackJob& job, int64_t first, int64_t last) {
    job.n == 16 ? round_rows<16>(job, first, last) : round_rows<32>(job, first, last);
}

} // namespace

void add_feedback(KernelTable& t) {
    t.feedback = {round, TILE};
}

} // namespace lg::LG_ISA
