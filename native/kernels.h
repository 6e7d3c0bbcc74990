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

namespace lg {

// ggml's type numbers (ggml.h); the facts of each type stand in src/loragraft/quants/types.py.
enum TypeId : int {
    F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8,
    Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14,
    IQ2_XXS = 16, IQ2_XS = 17, IQ3_XXS = 18, IQ1_S = 19, IQ4_NL = 20, IQ3_S = 21, IQ2_S = 22, IQ4_XS = 23,
    IQ1_M = 29, BF16 = 30, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39, NVFP4 = 40, Q1_0 = 41, Q2_0 = 42,
    TYPE_COUNT = 43,
};

struct TypeKernels {
    // `rows` rows of `cols` floats -> `rows` quantized rows. `importance`: `cols` floats shared by all rows, or null.
    void (*quantize)(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) = nullptr;
    // `n` weights (a multiple of the block) -> floats.
    void (*dequantize)(const uint8_t* y, float* x, int64_t n) = nullptr;
    int block = 0; // weights per block
    int bytes = 0; // bytes per block
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
