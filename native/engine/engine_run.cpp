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

// Where rows from `row` on of a product's weight lie.
const uint8_t* place_of(const Linear& task, int64_t row) {
    const PackedKernels& packed = kernels().engine.packed[task.type];
    return task.x.codes && task.packed ? task.packed + row / PACKED_ROWS * packed.group_bytes(task.cols)
                                       : task.weight + row * task.row_bytes;
}

// How a loop over some tasks is cut up: the first chunk of each, and the rows of its chunks.
struct Cut {
    std::vector<int64_t> first, step;

    int64_t make(const std::vector<Linear>& tasks, int threads) { // how many chunks
        first.assign(1, 0);
        step.clear();
        for (const Linear& task : tasks) {
            step.push_back(rows_per_chunk(task.rows, threads));
            first.push_back(first.back() + (task.rows + step.back() - 1) / step.back());
        }
        return first.back();
    }
    size_t task_of(int64_t chunk) const {
        return size_t(std::upper_bound(first.begin(), first.end(), chunk) - first.begin()) - 1;
    }
    int64_t row_of(size_t task, int64_t chunk) const { return (chunk - first[task]) * step[task]; }
};

} // namespace

void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks, const std::vector<Linear>* after) {
    thread_local Cut own, later_own;
    Cut &cut = own, &later = later_own;
    const int64_t chunks = cut.make(tasks, pool.size()), coming = after ? later.make(*after, pool.size()) : 0;
    pool.run(chunks, [&](int64_t chunk, int) {
        const size_t i = cut.task_of(chunk);
        const Linear& task = tasks[i];
        const int64_t at = cut.row_of(i, chunk), last = std::min(task.rows, at + cut.step[i]);
        const uint8_t* then = nullptr; // the thread goes on with the next chunk, or has come to the end of its range
        if (last == task.rows && i + 1 < tasks.size()) {
            then = place_of(tasks[i + 1], 0);
        }
        if (coming && (chunk + 1 == chunks || pool.share_of(chunk, chunks) != pool.share_of(chunk + 1, chunks))) {
            const int64_t next = pool.first_of(pool.share_of(chunk, chunks), coming);
            const size_t task_then = later.task_of(next);
            then = place_of((*after)[task_then], later.row_of(task_then, next));
        }
        if (then) {
            Linear with_then = task;
            with_then.then = then;
            kernel_of(task)(with_then, at, last);
        } else {
            kernel_of(task)(task, at, last);
        }
    });
}

} // namespace lg
