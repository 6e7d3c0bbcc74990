// Rounding a matrix with error feedback: what the kernel is given. quants/feedback.py defines what it computes.
#pragma once

#include <cstdint>

namespace lg {

// Rows of a matrix and their grid, columns in processing order: sub-blocks of `n` columns lie together.
struct FeedbackJob {
    int64_t rows = 0, cols = 0;
    int n = 0;                      // columns of a sub-block: 16 or 32
    // The levels that a code stands for, ascending; `uniform`: the whole numbers from the first to the last.
    const float* levels = nullptr;
    int n_levels = 0;
    bool uniform = false;
    // Scale of a sub-block: unit * table[number], or, without a table, the half float whose ordered bits the number is.
    const float* scale_table = nullptr; // [scale_high + 1]
    int scale_low = 0, scale_high = 0;
    bool affine = false;                // sub-blocks have an offset too: -(offset unit * offset table[number]), or a half
    const float* offset_table = nullptr;
    int offset_low = 0, offset_high = 0;

    const float* w = nullptr;            // [rows, cols]
    const float* units = nullptr;        // [rows, cols / n], or null for ones
    const float* offset_units = nullptr; // the same
    int32_t* scales = nullptr;           // [rows, cols / n], in and out
    int32_t* offsets = nullptr;          // the same
    int8_t* rounded = nullptr;           // [rows, cols] levels, in and out

    // H = (I + F) diag(pivots) (I + F)^T with F strictly upper triangular: of each panel of n columns, one after another,
    // the rows down to the sub-block's own, [cols * (cols / n + 1) / 2, n] in all.
    const float* factor = nullptr;
    const float* pivots = nullptr;       // [cols]
    // H itself, in panels [cols / n, cols, n], and of each of its diagonal blocks the factor, pivots and inverse: [cols / n, n, n], [cols].
    const float* h = nullptr;
    const float* block_factor = nullptr;
    const float* block_pivots = nullptr;
    const float* block_inverse = nullptr;

    // How far the scales' (and offsets') numbers may move in the pass with feedback, and in each sweep after it; 0: not.
    int step = 0;
    const int32_t* sweeps = nullptr;
    int n_sweeps = 0;
    bool forward = true;                 // else only the sweeps, from `rounded`

    float damping = 0.0f;                // what H's diagonal holds too much of
    float* losses = nullptr;             // [rows], out: what each row costs in the end, without the damping
};

struct FeedbackKernels {
    // Rounds rows [first, last) of the job.
    void (*round)(const FeedbackJob& job, int64_t first, int64_t last) = nullptr;
    int rows = 0; // rows that are best taken at once
};

} // namespace lg
