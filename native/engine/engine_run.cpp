#include "engine/engine_run.h"

#include <algorithm>

#include "kernels.h"

namespace lg {

Activations QuantizedRows::quantize(ThreadPool& pool, const float* x, int64_t rows, int64_t cols) {
    const int64_t n16 = cols / 16, n32 = cols / 32;
    int8_t* codes = codes_.get(rows * cols);
    float *d = d_.get(rows * n32), *dsum16 = dsum16_.get(rows * n16), *dsum32 = dsum32_.get(rows * n32);
    int32_t *sum16 = sum16_.get(rows * n16), *sum32 = sum32_.get(rows * n32);
    // One row is split over threads only if it is long: waking them costs more than a few thousand weights.
    const int64_t part = rows == 1 && cols > 16384 ? 4096 : cols;
    const int64_t parts = (cols + part - 1) / part;
    pool.run(rows * parts, [&](int64_t chunk, int) {
        const int64_t row = chunk / parts, at = chunk % parts * part;
        const int64_t o16 = row * n16 + at / 16, o32 = row * n32 + at / 32;
        kernels().engine.quantize_activations(x + row * cols + at, std::min(part, cols - at), codes + row * cols + at,
                                              d + o32, sum16 + o16, sum32 + o32, dsum16 + o16, dsum32 + o32);
    });
    return {rows, cols, x, codes, d, sum16, sum32, dsum16, dsum32};
}

namespace {

LinearKernel kernel_of(const Linear& task) {
    const EngineKernels& engine = kernels().engine;
    if (!task.x.codes) {
        return engine.linear_f32;
    }
    return task.packed ? engine.packed[task.type].linear : engine.linear_q8[task.type];
}

// Rows of one chunk: some chunks per thread, so that a slow one does not make the others wait.
int64_t rows_per_chunk(int64_t rows, int threads) {
    const int64_t share = rows / (int64_t(threads) * 8);
    return std::max(LINEAR_ROWS, share / LINEAR_ROWS * LINEAR_ROWS);
}

} // namespace

void run_linear(ThreadPool& pool, const Linear& task) {
    const LinearKernel kernel = kernel_of(task);
    const int64_t step = rows_per_chunk(task.rows, pool.size());
    pool.run((task.rows + step - 1) / step,
             [&](int64_t chunk, int) { kernel(task, chunk * step, std::min(task.rows, (chunk + 1) * step)); });
}

void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks) {
    std::vector<int64_t> first{0}; // the first chunk of each task
    for (const Linear& task : tasks) {
        const int64_t step = rows_per_chunk(task.rows, pool.size());
        first.push_back(first.back() + (task.rows + step - 1) / step);
    }
    pool.run(first.back(), [&](int64_t chunk, int) {
        const size_t i = size_t(std::upper_bound(first.begin(), first.end(), chunk) - first.begin()) - 1;
        const Linear& task = tasks[i];
        const int64_t step = rows_per_chunk(task.rows, pool.size()), at = (chunk - first[i]) * step;
        kernel_of(task)(task, at, std::min(task.rows, at + step));
    });
}

LayerCache::LayerCache(int kv_heads, int head_dim)
    : kv_heads_(kv_heads), head_dim_(head_dim), k_(size_t(kv_heads)), v_(size_t(kv_heads)) {}

void LayerCache::append(ThreadPool& pool, const float* k, const float* v, int64_t past, int64_t tokens) {
    positions_ = past + tokens;
    const int64_t hd = head_dim_, width = hd * kv_heads_;
    // Here, not in the pool: a thread of the pool could not report that there is no memory.
    const size_t room = size_t((positions_ + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK * hd);
    for (size_t head = 0; head < k_.size(); ++head) {
        if (k_[head].size() < room) {
            k_[head].resize(room);
        }
        if (v_[head].size() < room) {
            v_[head].resize(room);
        }
    }
    const auto copy = [&](int64_t head, int) {
        std::vector<float>&keys = k_[size_t(head)], &values = v_[size_t(head)];
        for (int64_t t = 0; t < tokens; ++t) {
            const int64_t at = past + t;
            const float* from = k + t * width + head * hd;
            float* block = keys.data() + at / KEY_BLOCK * KEY_BLOCK * hd + at % KEY_BLOCK;
            for (int64_t d = 0; d < hd; ++d) {
                block[d * KEY_BLOCK] = from[d];
            }
            std::copy_n(v + t * width + head * hd, hd, values.data() + at * hd);
        }
    };
    if (tokens == 1) {
        for (int head = 0; head < kv_heads_; ++head) {
            copy(head, 0);
        }
    } else {
        pool.run(kv_heads_, copy);
    }
}

void LayerCache::attend(ThreadPool& pool, const CachedAttention& task) const {
    const int64_t group = task.heads / task.kv_heads;
    const int64_t rows = task.tokens * group;
    constexpr int64_t STEP = 32;
    const int64_t steps = (rows + STEP - 1) / STEP;
    // The last tokens see the most keys: hand them out first.
    pool.run(steps * task.kv_heads, [&](int64_t chunk, int) {
        const int head = int(chunk % task.kv_heads);
        const int64_t at = (steps - 1 - chunk / task.kv_heads) * STEP;
        const HeadCache cache{k_[size_t(head)].data(), v_[size_t(head)].data()};
        kernels().engine.attend(task, cache, head, at, std::min(rows, at + STEP));
    });
}

} // namespace lg
