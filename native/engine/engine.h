// What the engine's kernels take and give: plain structs, one function pointer per operation, filled once per
// instruction set. What each operation means is defined by src/loragraft/backends/reference_ops.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lg {

// Rows of activations: float, and, after quantize_activations, 8-bit codes with a scale per 32.
struct Activations {
    int64_t rows = 0, cols = 0;
    const float* x = nullptr;      // [rows][cols]
    const int8_t* codes = nullptr; // [rows][cols], never -128
    const float* d = nullptr;      // [rows][cols / 32]; x is about d * code
    // Sums of the codes of each 16 or 32, as integers and times d.
    const int32_t* sum16 = nullptr;
    const int32_t* sum32 = nullptr;
    const float* dsum16 = nullptr;
    const float* dsum32 = nullptr;
};

// What adapters do to one row of a product: y = arch_scale * (dora_scale * (scale * (W x) + sum of B xa) + bias), applied
// in exactly this order.
enum class FactorForm : uint8_t { FLOATS, HALVES, Q8 }; // of A and B
struct LoraTerm {
    // [ceil(rows / 16)][rank][16], floats or half floats; of Q8, in each 16 rows first [rank] half floats that
    // scale the codes [rank][16] behind them.
    const uint8_t* b = nullptr;
    const float* xa = nullptr; // [rank]: this row's A x, times the adapter's scale and strength
    int rank = 0;
    FactorForm form = FactorForm::FLOATS;
};
// Bytes of B for 16 rows.
inline int64_t factor_group_bytes(FactorForm form, int64_t rank) {
    return rank * (form == FactorForm::FLOATS ? 64 : form == FactorForm::HALVES ? 32 : 18);
}
struct RowEnd {
    const LoraTerm* terms = nullptr; // added in order
    int n_terms = 0;
    const float* dora_scale = nullptr; // [rows], or null
};

// One product of a weight with some columns (tokens, or tokens of one expert).
struct Linear {
    const uint8_t* weight = nullptr; // rows of row_bytes
    int type = 0;
    int64_t rows = 0, cols = 0, row_bytes = 0;
    const uint8_t* packed = nullptr; // the same weight in the engine's own layout, or null
    Activations x;
    int64_t columns = 0;
    const int32_t* x_row = nullptr; // which row of x column t reads; null: row t
    const int32_t* y_row = nullptr; // which row of y column t writes; null: row t
    float* y = nullptr;             // [..][rows]
    float scale = 1.0f;             // the weight's own
    const float* bias = nullptr;    // [rows], or null
    float arch_scale = 1.0f;
    const RowEnd* row_end = nullptr; // of each row of y; null: no adapters
    const uint8_t* then = nullptr;   // what will be read after the rows that a kernel is given; null: what follows them
};

// How far ahead of its use a weight is asked for: without, a core waits for memory as long as it computes.
constexpr int64_t READ_AHEAD = 16384;

// A stream of bytes from `start` to `end` and on from `then`; what lies `ahead` of a place in it.
struct Stream {
    Stream(const uint8_t* start, const uint8_t* own_end, const uint8_t* own_then)
        : end(own_end), skip((own_then ? own_then : own_end) - own_end),
          ahead(own_end - start < READ_AHEAD ? own_end - start : READ_AHEAD) {}
    const uint8_t* at(const uint8_t* place) const {
        const uint8_t* wanted = place + ahead;
        return wanted < end ? wanted : wanted + skip;
    }
    const uint8_t* end;
    int64_t skip, ahead;
};

inline int64_t x_row(const Linear& l, int64_t t) { return l.x_row ? l.x_row[t] : t; }
inline int64_t y_row(const Linear& l, int64_t t) { return l.y_row ? l.y_row[t] : t; }

// A thread computes rows [first, last) of a product, for all columns; first is a multiple of LINEAR_ROWS.
using LinearKernel = void (*)(const Linear&, int64_t first, int64_t last);
constexpr int64_t LINEAR_ROWS = 48;

// The engine's own layout of a type (native/engine/packed.h): groups of PACKED_ROWS rows.
constexpr int64_t PACKED_ROWS = 16;
struct PackedKernels {
    int64_t (*group_bytes)(int64_t cols) = nullptr;
    // Rows [first, min(first + PACKED_ROWS, rows)) of a weight -> one group.
    void (*pack)(const Linear& weight, int64_t first, uint8_t* group) = nullptr;
    LinearKernel linear = nullptr; // 8-bit activations; reads `packed`
};

// The scan of one head of linear attention over some tokens of one sequence: S = exp(decay * rate) S + k u^T and
// y = S^T q + skip * v, where u = rate * v, or with `beta` the delta rule's beta * (v - S^T k).
struct Scan {
    int64_t tokens = 0, key_dim = 0, value_dim = 0;
    const float *q = nullptr, *k = nullptr, *v = nullptr; // the first token's, of this head
    const float *rate = nullptr, *beta = nullptr;         // likewise
    float* y = nullptr;
    int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0, gate_stride = 0; // from a token to the next
    float decay = 0.0f, skip = 0.0f;
};
// A head's state lies in blocks of so many columns, each [key_dim][SCAN_COLUMNS]; the last is filled up with zeros.
constexpr int64_t SCAN_COLUMNS = 16;
inline int64_t scan_blocks(int64_t value_dim) { return (value_dim + SCAN_COLUMNS - 1) / SCAN_COLUMNS; }

struct EngineKernels {
    void (*quantize_activations)(const float* x, int64_t cols, int8_t* codes, float* d, int32_t* sum16, int32_t* sum32,
                                 float* dsum16, float* dsum32) = nullptr; // one row
    void (*round_nvfp4)(const float* x, float* y, int64_t n, float scale) = nullptr;
    void (*to_floats)(int type, const uint8_t* row, float* y, int64_t n) = nullptr; // a row of any type
    LinearKernel linear_f32 = nullptr;       // any type, float activations
    PackedKernels packed[64];                // by type; nulls where a type has no integer kernel

    void (*rms_norm)(const float* x, const float* w, float* y, int64_t n, float eps) = nullptr; // one group
    void (*layer_norm)(const float* x, const float* w, const float* b, float* y, int64_t n, float eps) = nullptr;
    float (*mean)(const float* x, int64_t n) = nullptr;
    float (*variance)(const float* x, int64_t n, float mean) = nullptr; // the mean of (x - mean)^2
    void (*silu)(const float* x, float* y, int64_t n) = nullptr;
    void (*silu_mul)(const float* gate, const float* up, float* y, int64_t n) = nullptr;
    void (*sigmoid)(const float* x, float* y, int64_t n) = nullptr;
    void (*gelu_tanh)(const float* x, float* y, int64_t n) = nullptr;
    void (*gelu_erf)(const float* x, float* y, int64_t n) = nullptr;
    void (*softplus)(const float* x, float* y, int64_t n) = nullptr;
    void (*soft_cap)(const float* x, float* y, int64_t n, float cap) = nullptr;
    void (*clamp)(const float* x, float* y, int64_t n, float low, float high) = nullptr;
    void (*add)(const float* a, const float* b, float* y, int64_t n) = nullptr;
    void (*mul)(const float* a, const float* b, float* y, int64_t n) = nullptr;
    // One row of y: y[c] = bias[c] + sum over j < width of w[j][c] rows[j][c].
    void (*short_conv)(const float* const* rows, const float* w, const float* bias, float* y, int64_t channels,
                       int width) = nullptr;
    // Blocks [first, last) of a head's columns; its state before (null: zeros) and after, which may be the same.
    void (*scan)(const Scan&, const float* from, float* to, int64_t first, int64_t last) = nullptr;
    // One head: turns the first `rotary` elements by the angles whose cosines and sines are given.
    void (*rope)(const float* x, float* y, int head_dim, int rotary, bool adjacent, const float* cosines,
                 const float* sines) = nullptr;
};

} // namespace lg
