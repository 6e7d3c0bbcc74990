// Products of float matrices: what the kernel is given.
#pragma once

#include <cstdint>

namespace lg {

// out [rows, columns] = a [rows, depth] b [depth, columns], or that is added to it. Strides are in floats; those of `a` and `b`
// may be any, columns of `out` lie together. `upper`: only elements on and above the diagonal are wanted, others may stay
// as they are.
struct ProductJob {
    int64_t rows = 0, columns = 0, depth = 0;
    const float* a = nullptr;
    int64_t a_row = 0, a_column = 0;
    const float* b = nullptr;
    int64_t b_row = 0, b_column = 0;
    float* out = nullptr;
    int64_t out_row = 0;
    bool add = false, upper = false;
};

} // namespace lg
