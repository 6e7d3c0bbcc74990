// MXFP4 and NVFP4 as ggml quantizes them; see src/loragraft/quants/fp4.py for the formats and the sources.
#include "kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "quant/fp4.h"

namespace lg::LG_ISA {
namespace {

// The code of the nearest value, the first of equals; `scale` is the step of the doubled codes.
template <int N>
inline void nearest_codes(const float* x, float scale, uint8_t* codes) {
    int32_t best[N];
    float best_error[N];
    for (int j = 0; j < N; ++j) {
        best[j] = 0;
        best_error[j] = std::fabs(x[j]);
    }
    for (int code = 1; code < 8; ++code) {
        const float value = E2M1_DOUBLED[code] * scale;
        for (int j = 0; j < N; ++j) {
            const float error = std::fabs(value - std::fabs(x[j]));
            const bool closer = error < best_error[j];
            best[j] = closer ? code : best[j];
            best_error[j] = closer ? error : best_error[j];
        }
    }
    for (int j = 0; j < N; ++j) {
        codes[j] = uint8_t(best[j] | ((x[j] < 0 && best[j] > 0) << 3));
    }
}

template <int N>
inline void pack(const float* x, float scale, uint8_t* y) {
    uint8_t codes[N];
    nearest_codes<N>(x, scale, codes);
    for (int j = 0; j < N / 2; ++j) {
        y[j] = uint8_t(codes[j] | codes[j + N / 2] << 4);
    }
}

template <int N>
inline void unpack(const uint8_t* y, float scale, float* x) {
    for (int j = 0; j < N / 2; ++j) {
        x[j] = E2M1_DOUBLED[y[j] & 15] * scale;
        x[j + N / 2] = E2M1_DOUBLED[y[j] >> 4] * scale;
    }
}

template <int N>
inline float largest_magnitude(const float* x) {
    int32_t largest = 0;
    for (int j = 0; j < N; ++j) {
        largest = std::max(largest, std::bit_cast<int32_t>(x[j]) & 0x7FFFFFFF);
    }
    return std::bit_cast<float>(largest);
}

// ---- MXFP4

void mxfp4_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    for (int64_t b = 0; b < rows * cols / 32; ++b, x += 32, y += 17) {
        const float amax = largest_magnitude<32>(x);
        // Below 2^-125 the exponent is negative and wraps when it becomes a byte, as in the reference.
        y[0] = amax > 0 ? uint8_t(int(std::floor(float(std::log2(double(amax))))) + 125) : 0;
        pack<32>(x, e8m0_halved(y[0]), y + 1);
    }
}

void mxfp4_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 32; ++b, x += 32, y += 17) {
        unpack<32>(y + 1, e8m0_halved(y[0]), x);
    }
}

// ---- NVFP4

// ggml's scale encoder: halves away from zero, and everything in [248, 448) becomes 448.
inline uint8_t naive_ue4m3(float v) {
    const int32_t raw = std::bit_cast<int32_t>(std::min(v, 448.0f));
    const int exponent = (raw >> 23) - 120;
    if (exponent <= 0) {
        return uint8_t(std::min(7, int(v * 512.0f + 0.5f)));
    }
    const int code = (exponent << 3) + ((raw >> 20) & 7) + ((raw >> 19) & 1);
    return uint8_t(code >= 15 << 3 ? 0x7E : code);
}

void nvfp4_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    for (int64_t b = 0; b < rows * cols / 64; ++b, x += 64, y += 36) {
        for (int s = 0; s < 4; ++s) {
            y[s] = naive_ue4m3(largest_magnitude<16>(x + 16 * s) / 6.0f);
            pack<16>(x + 16 * s, ue4m3_halved(y[s]), y + 4 + 8 * s);
        }
    }
}

void nvfp4_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 64; ++b, x += 64, y += 36) {
        for (int s = 0; s < 4; ++s) {
            unpack<16>(y + 4 + 8 * s, ue4m3_halved(y[s]), x + 16 * s);
        }
    }
}

} // namespace

void add_fp4(KernelTable& t) {
    t.type[MXFP4] = {mxfp4_quantize, mxfp4_dequantize};
    t.type[NVFP4] = {nvfp4_quantize, nvfp4_dequantize};
}

} // namespace lg::LG_ISA
