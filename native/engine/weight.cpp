#include "engine/weight.h"

#include <algorithm>
#include <stdexcept>

#include "engine/engine_run.h"
#include "kernels.h"

namespace lg {

Weight::Weight(const uint8_t* data, int64_t n_rows, int64_t row_bytes, int type, int64_t cols, int64_t experts)
    : data_(data), n_rows_(n_rows), row_bytes_(row_bytes), type_(type), cols_(cols), experts_(experts) {
    require(type >= 0 && type < TYPE_COUNT, "unknown tensor type");
    const TypeKernels& t = kernels().type[type];
    require(t.dequantize, "a tensor type without kernels");
    require(cols > 0 && cols % t.block == 0, "a row is not a whole number of blocks");
    require(row_bytes == cols / t.block * t.bytes, "row bytes do not fit the type");
    require(experts > 0 && n_rows % experts == 0, "rows do not divide among the experts");
}

Linear Weight::task(int64_t expert) const {
    Linear l;
    l.row_bytes = row_bytes_;
    l.weight = data_ + expert * rows() * row_bytes_;
    l.packed = packed_ ? packed_ + expert * expert_bytes_ : nullptr;
    l.type = type_;
    l.rows = rows();
    l.cols = cols_;
    return l;
}

bool Weight::pack(ThreadPool& pool, Arena& arena) {
    const PackedKernels& kernel = kernels().engine.packed[type_];
    if (!kernel.pack || packed_) {
        return packed_ != nullptr;
    }
    const int64_t groups = (rows() + PACKED_ROWS - 1) / PACKED_ROWS, bytes = kernel.group_bytes(cols_);
    expert_bytes_ = groups * bytes;
    uint8_t* packed = arena.get(size_t(experts_ * expert_bytes_));
    pool.run(experts_ * groups, [&](int64_t i, int) {
        kernel.pack(task(i / groups), i % groups * PACKED_ROWS, packed + i * bytes);
    });
    packed_ = packed;
    return true;
}

void Weight::move(ThreadPool& pool, Arena& arena) {
    constexpr int64_t STEP = 1 << 20;
    const int64_t bytes = n_rows_ * row_bytes_;
    uint8_t* to = arena.get(size_t(bytes));
    pool.run((bytes + STEP - 1) / STEP, [&](int64_t i, int) {
        std::copy_n(data_ + i * STEP, std::min(STEP, bytes - i * STEP), to + i * STEP);
    });
    data_ = to;
}

void Weight::row(int64_t row, float* y) const { kernels().engine.to_floats(type_, data_ + row * row_bytes_, y, cols_); }

} // namespace lg
