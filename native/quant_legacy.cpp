// The types with one scale (and offset) per block of 32, 64 or 128 weights, without super-blocks.
//
// One block at a time in plain loops that the compiler vectorizes: magnitudes are compared as integers (the bits of
// positive floats are ordered as integers), so that a maximum needs no particular order; sums keep the reference's.
#include "half.h"
#include "kernels.h"

#include <algorithm>
#include <cstring>

namespace lg::LG_ISA {

namespace {

inline void put_half(uint8_t* y, float v) {
    const uint16_t h = half_from_float(v);
    std::memcpy(y, &h, 2);
}

inline float get_half(const uint8_t* y) {
    uint16_t h;
    std::memcpy(&h, y, 2);
    return float_from_half(h);
}

// The largest magnitude of a block, its bits.
template <int N>
inline int32_t largest_magnitude(const float* x) {
    int32_t bits[N];
    std::memcpy(bits, x, sizeof bits);
    int32_t largest = 0;
    for (int j = 0; j < N; ++j) {
        largest = std::max(largest, bits[j] & 0x7FFFFFFF);
    }
    return largest;
}

// The weight of largest magnitude, with its sign; the first one wins; never -0.
template <int N>
inline float largest_weight(const float* x) {
    int32_t bits[N];
    std::memcpy(bits, x, sizeof bits);
    const int32_t largest = largest_magnitude<N>(x);
    int32_t first = N - 1;
    for (int j = 0; j < N; ++j) {
        first = std::min(first, (bits[j] & 0x7FFFFFFF) == largest ? j : N);
    }
    return largest ? x[first] : 0.0f;
}

// The scale's inverse; `finite` is false when it overflows (a denormal scale). Then every product is infinite or NaN,
// and the reference's casts of those give 0 on x86-64.
struct Inverse {
    float value;
    bool finite;
};

inline Inverse inverse(float d) {
    const float id = d != 0.0f ? 1.0f / d : 0.0f;
    return {id, std::fabs(id) <= __FLT_MAX__};
}

// roundf as an integer, for |v| < 2^22: 0.5 - 2^-25 never carries a fraction below one half.
inline int32_t round_away(float v) {
    return int32_t(v + std::copysign(0x1.fffffep-2f, v));
}

template <auto Block, int N, int Bytes>
void each_block(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    const int64_t blocks = rows * cols / N;
    for (int64_t b = 0; b < blocks; ++b) {
        Block(x + b * N, y + b * Bytes);
    }
}

template <auto Block, int N, int Bytes>
void each_block_back(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / N; ++b) {
        Block(y + b * Bytes, x + b * N);
    }
}

// ---- Q1_0: 128 signs and the mean magnitude

void q1_0_block(const float* x, uint8_t* y) {
    float sum = 0.0f;
    for (int j = 0; j < 128; ++j) {
        sum += std::fabs(x[j]);
    }
    put_half(y, sum / 128.0f);
    for (int byte = 0; byte < 16; ++byte) {
        uint8_t bits = 0;
        for (int j = 0; j < 8; ++j) {
            bits |= uint8_t((x[8 * byte + j] >= 0.0f) << j);
        }
        y[2 + byte] = bits;
    }
}

void q1_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 128; ++j) {
        x[j] = (y[2 + j / 8] >> (j % 8)) & 1 ? d : -d;
    }
}

// ---- Q2_0: 64 codes -1 .. 2 of the largest magnitude

void q2_0_block(const float* x, uint8_t* y) {
    const int32_t bits = largest_magnitude<64>(x);
    float d;
    std::memcpy(&d, &bits, 4);
    put_half(y, d);
    const Inverse id = inverse(d);
    if (!id.finite) {
        std::memset(y + 2, 0, 16); // the cast gives -2^31, which is clamped to the lowest code
        return;
    }
    uint8_t codes[64];
    for (int j = 0; j < 64; ++j) {
        codes[j] = uint8_t(std::clamp(round_away(x[j] * id.value) + 1, 0, 3));
    }
    for (int j = 0; j < 16; ++j) {
        y[2 + j] = uint8_t(codes[4 * j] | codes[4 * j + 1] << 2 | codes[4 * j + 2] << 4 | codes[4 * j + 3] << 6);
    }
}

void q2_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 64; ++j) {
        x[j] = float(int(y[2 + j / 4] >> (2 * (j % 4)) & 3) - 1) * d;
    }
}

// ---- Q4_0: codes around zero; the largest weight becomes code 0

void q4_0_block(const float* x, uint8_t* y) {
    const float d = largest_weight<32>(x) / -8.0f;
    put_half(y, d);
    const Inverse id = inverse(d);
    if (!id.finite) {
        std::memset(y + 2, 0, 16);
        return;
    }
    int32_t codes[32];
    for (int j = 0; j < 32; ++j) {
        codes[j] = std::min(15, int32_t(x[j] * id.value + 8.5f));
    }
    for (int j = 0; j < 16; ++j) {
        y[2 + j] = uint8_t(codes[j] | codes[j + 16] << 4);
    }
}

void q4_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 16; ++j) {
        x[j] = float((y[2 + j] & 15) - 8) * d;
        x[j + 16] = float((y[2 + j] >> 4) - 8) * d;
    }
}

// ---- Q8_0

void q8_0_block(const float* x, uint8_t* y) {
    const int32_t bits = largest_magnitude<32>(x);
    float amax;
    std::memcpy(&amax, &bits, 4);
    const float d = amax / 127.0f;
    put_half(y, d);
    const Inverse id = inverse(d);
    if (!id.finite) {
        std::memset(y + 2, 0, 32);
        return;
    }
    for (int j = 0; j < 32; ++j) {
        y[2 + j] = uint8_t(round_away(x[j] * id.value));
    }
}

void q8_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 32; ++j) {
        x[j] = float(int8_t(y[2 + j])) * d;
    }
}

template <auto Quantize, auto Dequantize, int N, int Bytes>
constexpr TypeKernels simple() {
    return {each_block<Quantize, N, Bytes>, each_block_back<Dequantize, N, Bytes>, N, Bytes};
}

} // namespace

void add_legacy(KernelTable& t) {
    t.type[Q1_0] = simple<q1_0_block, q1_0_back, 128, 18>();
    t.type[Q2_0] = simple<q2_0_block, q2_0_back, 64, 18>();
    t.type[Q4_0] = simple<q4_0_block, q4_0_back, 32, 18>();
    t.type[Q8_0] = simple<q8_0_block, q8_0_back, 32, 34>();
}

} // namespace lg::LG_ISA
