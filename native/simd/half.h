// Conversions of single values between float and the 16-bit formats, with ggml's rounding and NaN handling. Arrays are
// converted by native/quant/floats.cpp. Static, so that each instruction set's objects keep their own code.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lg {

// IEEE half bits, round to nearest even; NaN becomes 0x7E00 with its sign.
static inline uint16_t half_from_float(float f) {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) {
        return uint16_t(sign | 0x7E00);
    }
    if (magnitude >= 0x477FF000) { // rounds to 2^16 or more
        return uint16_t(sign | 0x7C00);
    }
    if (magnitude < 0x38800000) {
        // Below the smallest normal half: adding 0.5 puts units of 2^-24 at the end of the mantissa, rounded.
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        return uint16_t(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000));
    }
    const uint32_t odd = (magnitude >> 13) & 1;
    return uint16_t(sign | ((magnitude - 0x38000000 + 0xFFF + odd) >> 13));
}

// The half of a computed scale. Sums that overflow make it NaN; a new NaN has its sign set on x86-64, which the reference
// stores, and clear elsewhere.
static inline uint16_t half_from_result(float f) {
#if !defined(__x86_64__)
    f = f != f ? -f : f;
#endif
    return half_from_float(f);
}

// A signalling NaN comes back quiet.
static inline float float_from_half(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16;
    const uint32_t magnitude = h & 0x7FFF;
    if (magnitude >= 0x7C00) {
        const uint32_t quiet = magnitude > 0x7C00 ? 0x400000 : 0;
        return std::bit_cast<float>(sign | 0x7F800000 | (magnitude << 13) | quiet);
    }
    if (magnitude < 0x0400) {
        return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(float(magnitude) * 0x1p-24f));
    }
    return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000));
}

// Round to nearest even; NaN keeps its upper bits and becomes quiet.
static inline uint16_t bfloat_from_float(float f) {
    const uint32_t bits = std::bit_cast<uint32_t>(f);
    const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    const uint32_t quiet = (bits >> 16) | 64;
    return uint16_t((bits & 0x7FFFFFFF) > 0x7F800000 ? quiet : rounded);
}

static inline float float_from_bfloat(uint16_t b) {
    return std::bit_cast<float>(uint32_t(b) << 16);
}

static inline float get_half(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return float_from_half(h);
}

// Stores a computed scale; returns it as it will be read back.
static inline float put_half(uint8_t* p, float v) {
    const uint16_t h = half_from_result(v);
    std::memcpy(p, &h, 2);
    return float_from_half(h);
}

} // namespace lg
