// Shares the engine's operations out over a thread pool. Nothing here depends on Python; callers have checked shapes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/scratch.h"
#include "os/threads.h"

namespace lg {

inline void require(bool ok, const char* what) {
    if (!ok) {
        throw std::invalid_argument(std::string("engine: ") + what);
    }
}

// The 8-bit form of some rows of activations; memory is kept for the next rows.
class QuantizedRows {
  public:
    // Quantizes x [rows][cols]; cols is a multiple of 32. The result is valid until the next call.
    Activations quantize(ThreadPool& pool, const float* x, int64_t rows, int64_t cols);

  private:
    Scratch<int8_t> codes_;
    Scratch<float> d_, dsum16_, dsum32_;
    Scratch<int32_t> sum16_, sum32_;
};

// Products over all rows of their weights: of layers that read the same x, of tokens with the experts they were routed
// to. Tasks may differ in everything. `after`: tasks that are run next, whose weights each thread asks for when it comes
// to its end.
void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks, const std::vector<Linear>* after = nullptr);

// Shares rows of floats out: chunks of some thousand elements, one alone for a token.
template <typename F> void over_rows(ThreadPool& pool, int64_t rows, int64_t width, F body) {
    const int64_t step = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width));
    pool.run((rows + step - 1) / step, [&](int64_t chunk, int) {
        for (int64_t r = chunk * step; r < std::min(rows, (chunk + 1) * step); ++r) {
            body(r);
        }
    });
}

// Shares `n` elements out: body(first, how many).
template <typename F> void over_elements(ThreadPool& pool, int64_t n, F body) {
    constexpr int64_t STEP = 16384;
    pool.run((n + STEP - 1) / STEP, [&](int64_t c, int) { body(c * STEP, std::min(STEP, n - c * STEP)); });
}

} // namespace lg
