// Facts about the 4-bit floats and their scales, as ggml keeps them: codes doubled, scales halved.
#pragma once

#include <bit>
#include <cstdint>

namespace lg {

// The value of each E2M1 code, doubled; code 8 is minus zero.
static constexpr float E2M1_DOUBLED[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Half the power of two that an E8M0 byte means: 2^(e - 128), denormal for 0 and 1.
static inline float e8m0_halved(uint8_t e) {
    return std::bit_cast<float>(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23);
}

// The value of an E4M3 code below 0x7F.
static constexpr inline float e4m3_value(uint8_t code) {
    const uint32_t exponent = code >> 3, mantissa = code & 7;
    return exponent ? std::bit_cast<float>((exponent + 120) << 23 | mantissa << 20) : float(mantissa) * 0x1p-9f;
}

// Half the value that ggml reads from a scale byte: the sign bit ignored, 0x7F (NaN) read as 0.
static constexpr inline float ue4m3_halved(uint8_t code) {
    return code == 0x7F ? 0.0f : e4m3_value(code & 0x7F) * 0.5f;
}

} // namespace lg
