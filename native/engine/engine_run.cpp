#include "engine/engine_run.h"

#include <algorithm>
#include <utility>

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

// Where rows from `row` on of a product's weight lie.
const uint8_t* place_of(const Linear& task, int64_t row) {
    const PackedKernels& packed = kernels().engine.packed[task.type];
    return task.x.codes && task.packed ? task.packed + row / PACKED_ROWS * packed.group_bytes(task.cols)
                                       : task.weight + row * task.row_bytes;
}

} // namespace

void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks, const std::vector<Linear>* after) {
    thread_local std::vector<int64_t> starts[2]; // the first chunk of each task
    const auto count_chunks = [&](const std::vector<Linear>& own, std::vector<int64_t>& first) {
        first.assign(1, 0);
        for (const Linear& task : own) {
            const int64_t step = rows_per_chunk(task.rows, pool.size());
            first.push_back(first.back() + (task.rows + step - 1) / step);
        }
        return first.back();
    };
    // Task of a chunk, and its first row.
    const auto find = [&](const std::vector<Linear>& own, const std::vector<int64_t>& first, int64_t chunk) {
        const size_t i = size_t(std::upper_bound(first.begin(), first.end(), chunk) - first.begin()) - 1;
        return std::pair(i, (chunk - first[i]) * rows_per_chunk(own[i].rows, pool.size()));
    };
    std::vector<int64_t>&first = starts[0], &later = starts[1];
    const int64_t chunks = count_chunks(tasks, first), coming = after ? count_chunks(*after, later) : 0;
    pool.run(chunks, [&](int64_t chunk, int) {
        const auto [i, at] = find(tasks, first, chunk);
        Linear task = tasks[i];
        const int64_t last = std::min(task.rows, at + rows_per_chunk(task.rows, pool.size()));
        // The thread goes on with the next chunk, or has come to the end of its share.
        const int64_t share = pool.share_of(chunk, chunks);
        if (chunk + 1 < chunks && pool.share_of(chunk + 1, chunks) == share) {
            if (last == task.rows) {
                task.then = place_of(tasks[i + 1], 0);
            }
        } else if (coming) {
            const auto [next, row] = find(*after, later, pool.first_of(share, coming));
            task.then = place_of((*after)[next], row);
        }
        kernel_of(task)(task, at, last);
    });
}

} // namespace lg
