// Shares the engine's operations out over a thread pool. Nothing here depends on Python; callers have checked shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "engine/scratch.h"
#include "os/threads.h"

namespace lg {

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

// A product over all rows of the weight.
void run_linear(ThreadPool& pool, const Linear& task);

// Products of tokens with the experts they were routed to: tasks differ in weight, columns and epilogue.
void run_linears(ThreadPool& pool, const std::vector<Linear>& tasks);

// One layer's keys and values, growing as tokens come.
class LayerCache {
  public:
    LayerCache(int kv_heads, int head_dim);
    // Writes k and v [tokens][kv_heads * head_dim] at positions [past, past + tokens).
    void append(ThreadPool& pool, const float* k, const float* v, int64_t past, int64_t tokens);
    // Attends from the tokens at [task.past, task.past + task.tokens), already appended.
    void attend(ThreadPool& pool, const CachedAttention& task) const;
    int64_t positions() const { return positions_; }
    int kv_heads() const { return kv_heads_; }
    int head_dim() const { return head_dim_; }

  private:
    int kv_heads_, head_dim_;
    int64_t positions_ = 0; // how many are written
    std::vector<std::vector<float>> k_, v_; // one each per head
};

} // namespace lg
