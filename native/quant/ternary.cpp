// TQ1_0 and TQ2_0: -1, 0 or 1 times one scale per 256; see src/loragraft/quants/ternary.py.
#include "simd/half.h"
#include "kernels.h"

#include <cmath>
#include <cstring>

namespace lg::LG_ISA {
namespace {

// Codes 0, 1, 2 of 256 weights; the scale goes to `scale`, in half precision.
inline void digits(const float* x, uint8_t* codes, uint8_t* scale) {
    float d = 0;
    for (int j = 0; j < 256; ++j) {
        const float a = std::fabs(x[j]);
        d = d > a ? d : a;
    }
    const uint16_t half = half_from_result(d);
    std::memcpy(scale, &half, 2);
    const float id = d != 0 ? 1.0f / d : 0.0f;
    for (int j = 0; j < 256; ++j) {
        // Half away from zero; id is infinite for the smallest d, and then the reference's lroundf gives 0.
        const float v = x[j] * id;
        const int up = v >= 0.5f && v <= 2.0f, down = v <= -0.5f && v >= -2.0f;
        codes[j] = uint8_t(1 + up - down);
    }
}

inline float scale_of(const uint8_t* y) {
    uint16_t half;
    std::memcpy(&half, y, 2);
    return float_from_half(half);
}

// ---- TQ1_0: five digits in a byte, as the fraction digits / 3^5 of 256, rounded up

// Digit n of byte m is weight n * BYTES + m.
template <int BYTES, int DIGITS>
inline void pack_digits(const uint8_t* codes, uint8_t* y) {
    for (int m = 0; m < BYTES; ++m) {
        uint32_t number = 0;
        for (int n = 0; n < 5; ++n) {
            number = 3 * number + (n < DIGITS ? codes[n * BYTES + m] : 0);
        }
        y[m] = uint8_t((number * 256 + 242) / 243);
    }
}

template <int BYTES, int DIGITS>
inline void unpack_digits(const uint8_t* y, float d, float* x) {
    uint32_t power = 1;
    for (int n = 0; n < DIGITS; ++n, power *= 3) {
        for (int m = 0; m < BYTES; ++m) {
            const uint32_t fraction = (y[m] * power) & 255;
            x[n * BYTES + m] = float(int(fraction * 3 >> 8) - 1) * d;
        }
    }
}

void tq1_0_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    for (int64_t b = 0; b < rows * cols / 256; ++b, x += 256, y += 54) {
        uint8_t codes[256];
        digits(x, codes, y + 52);
        pack_digits<32, 5>(codes, y);
        pack_digits<16, 5>(codes + 160, y + 32);
        pack_digits<4, 4>(codes + 240, y + 48);
    }
}

void tq1_0_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += 54) {
        const float d = scale_of(y + 52);
        unpack_digits<32, 5>(y, d, x);
        unpack_digits<16, 5>(y + 32, d, x + 160);
        unpack_digits<4, 4>(y + 48, d, x + 240);
    }
}

// ---- TQ2_0: four digits in a byte, 32 weights apart

void tq2_0_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    for (int64_t b = 0; b < rows * cols / 256; ++b, x += 256, y += 66) {
        uint8_t codes[256];
        digits(x, codes, y + 64);
        for (int j = 0; j < 64; ++j) {
            const uint8_t* c = codes + j / 32 * 128 + j % 32;
            y[j] = uint8_t(c[0] | c[32] << 2 | c[64] << 4 | c[96] << 6);
        }
    }
}

void tq2_0_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / 256; ++b, x += 256, y += 66) {
        const float d = scale_of(y + 64);
        for (int j = 0; j < 256; ++j) {
            x[j] = float((y[j / 128 * 32 + j % 32] >> (j / 32 % 4 * 2) & 3) - 1) * d;
        }
    }
}

} // namespace

void add_ternary(KernelTable& t) {
    t.type[TQ1_0] = {tq1_0_quantize, tq1_0_dequantize};
    t.type[TQ2_0] = {tq2_0_quantize, tq2_0_dequantize};
}

} // namespace lg::LG_ISA
