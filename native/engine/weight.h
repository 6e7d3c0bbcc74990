// A weight's rows as they are stored, `experts` matrices on top of each other, and in the engine's own layout once packed.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "os/arena.h"
#include "os/threads.h"

namespace lg {

class Weight {
  public:
    // `data` [n_rows][row_bytes] stays the caller's. Throws std::invalid_argument where the numbers do not fit the type.
    Weight(const uint8_t* data, int64_t n_rows, int64_t row_bytes, int type, int64_t cols, int64_t experts);

    int64_t rows() const { return n_rows_ / experts_; } // of one expert
    int64_t cols() const { return cols_; }
    int64_t experts() const { return experts_; }
    int64_t n_rows() const { return n_rows_; }
    int type() const { return type_; }
    bool has_q8() const { return packed_ != nullptr; } // whether products with 8-bit activations are integer ones

    // A product with one expert's matrix; the caller adds x, y and the epilogue.
    Linear task(int64_t expert) const;

    // Makes the engine's own layout of the weight, which products with 8-bit activations then read, where its type has
    // one; whether it has. Costs as much memory, in `arena`, as the weight.
    bool pack(ThreadPool& pool, Arena& arena);

    // Copies the rows into `arena`, whose large pages are read faster than a mapped file's.
    void move(ThreadPool& pool, Arena& arena);

    // Row `row` as floats [cols].
    void row(int64_t row, float* y) const;

  private:
    const uint8_t* data_;
    int64_t n_rows_, row_bytes_;
    int type_;
    int64_t cols_, experts_;
    const uint8_t* packed_ = nullptr; // in the arena given to `pack`
    int64_t expert_bytes_ = 0;
};

} // namespace lg
