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
    return task.x.codes && task.packed ? engine.packed[task.type].linear : engine.linear_f32;
}

// Rows of one chunk: some chunks per thread, so that a slow one does not make the others wait.
int64_t rows_per_chunk(int64_t rows, int threads) {
    const int64_t share = rows / (int64_t(threads) * 8);
    return std::max(LINEAR_ROWS, share / LINEAR_ROWS * LINEAR_ROWS);
}

} // namespace

void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks) {
    thread_local std::vector<int64_t> starts; // the first chunk of each task
    std::vector<int64_t>& first = starts;
    first.assign(1, 0);
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

} // namespace lg
