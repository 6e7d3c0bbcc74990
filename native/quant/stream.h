// One pass over rows of a tensor: read as stored, add adapter deltas, round, quantize. Nothing here depends on Python.
#pragma once

#include "kernels.h"

#include <cstdint>
#include <vector>

namespace lg {

// delta = scale * b a, b [rows, rank] starting at the job's first row, a [rank, cols].
struct Delta {
    const float* a;
    const float* b;
    int64_t rank;
    float scale;
};

struct StreamJob {
    const KernelTable* kernels;
    const uint8_t* src;
    int src_type;
    uint8_t* dst; // null: check the source only
    int dst_type;
    int64_t rows;
    int64_t cols;
    std::vector<Delta> deltas; // added one after another
    bool through_f16 = false;  // round to F16 before quantizing, as a merge in two steps does
    const float* importance = nullptr; // [cols]
    float multiplier = 1.0f;           // of the source values, before any delta
    float nvfp4_scale = 0.0f;          // of a target in NVFP4, when read; 0: none, and ggml's quantizer
};

enum class Fault {
    none,
    input,    // a source value is an infinity or NaN
    range,    // a merged value does not fit the float type it is rounded to
    scale,    // a quantized block's scale does not fit its type
};

struct StreamResult {
    Fault fault = Fault::none;
    int64_t row = 0;
    int64_t col = 0; // for a block of a quantized type, its first column
};

// Runs the job, or stops at the first fault.
StreamResult stream_rows(const StreamJob& job);

} // namespace lg
