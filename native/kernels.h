// The table of kernels that one instruction set provides. Every family (one .cpp file) is compiled once per
// instruction set into the namespace `lg::<isa>` and fills its rows of that set's table; dispatch.cpp picks one
// table at run time. Nothing here depends on Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/kv_pages.h"
#include "quant/feedback.h"
#include "quant/product.h"
#include "types.h"

namespace lg {

struct TypeKernels {
    // `rows` rows of `cols` floats -> `rows` quantized rows. `importance`: `cols` floats shared by all rows, or null.
    void (*quantize)(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) = nullptr;
    // `n` weights (a multiple of the block) -> floats.
    void (*dequantize)(const uint8_t* y, float* x, int64_t n) = nullptr;
    int block = 0; // weights per block, and its bytes: from the table of types
    int bytes = 0;
};

// What a pass over float rows needs beside conversions: native/quant/delta.cpp.
struct DeltaKernels {
    // y [rows, cols] += scale * b a; a [rank, cols], b [rows, rank].
    void (*add)(float* y, const float* a, const float* b, int64_t rows, int64_t cols, int64_t rank, float scale) = nullptr;
    // The index of the first of `n` words, 4 or 2 bytes each, that has all bits of `exponent` set (an infinity or
    // NaN), or n.
    int64_t (*first_special32)(const uint8_t* words, int64_t n, uint32_t exponent) = nullptr;
    int64_t (*first_special16)(const uint8_t* words, int64_t n, uint32_t exponent) = nullptr;
};

struct KernelTable {
    const char* isa = "";
    TypeKernels type[TYPE_COUNT];
    // As TypeKernels::quantize for NVFP4, with a per-tensor scale and the block scales searched for (type[NVFP4] holds
    // ggml's own quantizer).
    void (*nvfp4)(const float* x, uint8_t* y, int64_t rows, int64_t cols, float scale, const float* importance) = nullptr;
    DeltaKernels delta;
    FeedbackKernels feedback;
    void (*product)(const ProductJob& job) = nullptr;
    EngineKernels engine;
    PageKernels pages;
};

// The best table that this machine can run, or the one that LORAGRAFT_ISA names (baseline, avx2, avx512, neon).
const KernelTable& kernels();

// The table called `isa`; throws std::runtime_error when this build lacks it or this machine cannot run it.
const KernelTable& kernels(const char* isa);

// The names of the tables that this machine can run, best first.
std::vector<std::string> isas();

} // namespace lg

#define LG_STR_(x) #x
#define LG_STR(x) LG_STR_(x)
