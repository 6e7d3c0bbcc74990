// How each quantized type splits into 8-bit codes and float scales: weight = scale * code + min, one scale (and min) for
// every SUB weights. One struct per type; the products of linear_q8.cpp are written once over them.
//
//   BLOCK, BYTES  weights and bytes of a block (at most 256 weights)
//   SUB           16 or 32
//   MIN           whether there are mins
//   SIGNED        whether codes may be negative
//   decode        one block: BLOCK / 32 vectors of codes, BLOCK / SUB scales and mins
//
// The layouts are ggml's (ggml-common.h, dequantize_row_* in ggml-quants.c).
#pragma once

#include "simd/bytes.h"
#include "quant/fp4.h"

namespace lg::LG_ISA {

constexpr int MAX_BLOCK = 256;

struct Q8_0Codes {
    static constexpr int BLOCK = 32, BYTES = 34, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        scale[0] = half_at(b);
        codes[0] = (i8x32)load_u8(b + 2);
    }
};

struct Q4_0Codes {
    static constexpr int BLOCK = 32, BYTES = 18, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        scale[0] = half_at(b);
        codes[0] = (i8x32)nibbles16(b + 2) - 8;
    }
};

struct Q4_1Codes {
    static constexpr int BLOCK = 32, BYTES = 20, SUB = 32;
    static constexpr bool MIN = true, SIGNED = false;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float* min) {
        scale[0] = half_at(b);
        min[0] = half_at(b + 2);
        codes[0] = (i8x32)nibbles16(b + 4);
    }
};

struct Q5_0Codes {
    static constexpr int BLOCK = 32, BYTES = 22, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        scale[0] = half_at(b);
        codes[0] = (i8x32)(nibbles16(b + 6) | (bits32(b + 2) & 16)) - 16;
    }
};

struct Q5_1Codes {
    static constexpr int BLOCK = 32, BYTES = 24, SUB = 32;
    static constexpr bool MIN = true, SIGNED = false;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float* min) {
        scale[0] = half_at(b);
        min[0] = half_at(b + 2);
        codes[0] = (i8x32)(nibbles16(b + 8) | (bits32(b + 4) & 16));
    }
};

struct Q2_KCodes {
    static constexpr int BLOCK = 256, BYTES = 84, SUB = 16;
    static constexpr bool MIN = true, SIGNED = false;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float* min) {
        const float d = half_at(b + 80), dmin = half_at(b + 82);
        for (int i = 0; i < 16; ++i) {
            scale[i] = d * float(b[i] & 15);
            min[i] = -dmin * float(b[i] >> 4);
        }
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 16 + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)(q >> (2 * j) & 3);
            }
        }
    }
};

struct Q3_KCodes {
    static constexpr int BLOCK = 256, BYTES = 110, SUB = 16;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        const float d = half_at(b + 108);
        uint32_t a[3];
        std::memcpy(a, b + 96, 12);
        const uint32_t packed[4] = {(a[0] & 0x0f0f0f0f) | (a[2] & 0x03030303) << 4,
                                    (a[1] & 0x0f0f0f0f) | (a[2] >> 2 & 0x03030303) << 4,
                                    (a[0] >> 4 & 0x0f0f0f0f) | (a[2] >> 4 & 0x03030303) << 4,
                                    (a[1] >> 4 & 0x0f0f0f0f) | (a[2] >> 6 & 0x03030303) << 4};
        uint8_t six_bits[16];
        std::memcpy(six_bits, packed, 16);
        for (int i = 0; i < 16; ++i) {
            scale[i] = d * float(int(six_bits[i]) - 32);
        }
        const u8x32 high = load_u8(b);
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 32 + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)((q >> (2 * j) & 3) | (high >> (4 * n + j) & 1) << 2) - 4;
            }
        }
    }
};

// The 6-bit scales and mins of Q4_K and Q5_K: 12 bytes -> 8 of each.
inline void six_bit_scales(const uint8_t* b, uint8_t* scale, uint8_t* min) {
    uint32_t u[3];
    std::memcpy(u, b, 12);
    const uint32_t s[2] = {u[0] & 0x3f3f3f3f, (u[2] & 0x0f0f0f0f) | (u[0] >> 6 & 0x03030303) << 4};
    const uint32_t m[2] = {u[1] & 0x3f3f3f3f, (u[2] >> 4 & 0x0f0f0f0f) | (u[1] >> 6 & 0x03030303) << 4};
    std::memcpy(scale, s, 8);
    std::memcpy(min, m, 8);
}

inline void scales_and_mins(const uint8_t* b, float* scale, float* min) {
    const float d = half_at(b), dmin = half_at(b + 2);
    uint8_t sb[8], mb[8];
    six_bit_scales(b + 4, sb, mb);
    for (int i = 0; i < 8; ++i) {
        scale[i] = d * float(sb[i]);
        min[i] = -dmin * float(mb[i]);
    }
}

struct Q4_KCodes {
    static constexpr int BLOCK = 256, BYTES = 144, SUB = 32;
    static constexpr bool MIN = true, SIGNED = false;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float* min) {
        scales_and_mins(b, scale, min);
        for (int j = 0; j < 4; ++j) {
            const u8x32 q = load_u8(b + 16 + 32 * j);
            codes[2 * j] = (i8x32)(q & 15);
            codes[2 * j + 1] = (i8x32)(q >> 4);
        }
    }
};

struct Q5_KCodes {
    static constexpr int BLOCK = 256, BYTES = 176, SUB = 32;
    static constexpr bool MIN = true, SIGNED = false;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float* min) {
        scales_and_mins(b, scale, min);
        const u8x32 high = load_u8(b + 16);
        for (int j = 0; j < 4; ++j) {
            const u8x32 q = load_u8(b + 48 + 32 * j);
            codes[2 * j] = (i8x32)((q & 15) | (high >> (2 * j) & 1) << 4);
            codes[2 * j + 1] = (i8x32)(q >> 4 | (high >> (2 * j + 1) & 1) << 4);
        }
    }
};

struct Q6_KCodes {
    static constexpr int BLOCK = 256, BYTES = 210, SUB = 16;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        const float d = half_at(b + 208);
        for (int i = 0; i < 16; ++i) {
            scale[i] = d * float(int8_t(b[192 + i]));
        }
        for (int n = 0; n < 2; ++n) {
            const u8x32 q0 = load_u8(b + 64 * n), q1 = load_u8(b + 64 * n + 32), high = load_u8(b + 128 + 32 * n);
            codes[4 * n] = (i8x32)((q0 & 15) | (high & 3) << 4) - 32;
            codes[4 * n + 1] = (i8x32)((q1 & 15) | (high >> 2 & 3) << 4) - 32;
            codes[4 * n + 2] = (i8x32)(q0 >> 4 | (high >> 4 & 3) << 4) - 32;
            codes[4 * n + 3] = (i8x32)(q1 >> 4 | high >> 6 << 4) - 32;
        }
    }
};

// The 16 values of IQ4_NL and IQ4_XS.
inline constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
inline constexpr int8_t E2M1_CODES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NLCodes {
    static constexpr int BLOCK = 32, BYTES = 18, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        scale[0] = half_at(b);
        codes[0] = lookup(IQ4_VALUES, nibbles16(b + 2));
    }
};

struct IQ4_XSCodes {
    static constexpr int BLOCK = 256, BYTES = 136, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline int six_bits(const uint8_t* b, int i) {
        const int high = b[2] | b[3] << 8;
        return (b[4 + i / 2] >> (4 * (i % 2)) & 15) | (high >> (2 * i) & 3) << 4;
    }
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        const float d = half_at(b);
        for (int i = 0; i < 8; ++i) {
            scale[i] = d * float(six_bits(b, i) - 32);
            codes[i] = lookup(IQ4_VALUES, nibbles16(b + 8 + 16 * i));
        }
    }
};

struct MXFP4Codes {
    static constexpr int BLOCK = 32, BYTES = 17, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        scale[0] = e8m0_halved(b[0]);
        codes[0] = lookup(E2M1_CODES, nibbles16(b + 1));
    }
};

struct UE4M3Table {
    float of[256];
    constexpr UE4M3Table() : of() {
        for (int i = 0; i < 256; ++i) {
            of[i] = ue4m3_halved(uint8_t(i));
        }
    }
};
constexpr UE4M3Table UE4M3_HALVED;

struct NVFP4Codes {
    static constexpr int BLOCK = 64, BYTES = 36, SUB = 16;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        for (int i = 0; i < 4; ++i) {
            scale[i] = UE4M3_HALVED.of[b[i]];
        }
        // Each 8 bytes are 16 weights: 8 in the low nibbles, 8 in the high ones.
        typedef int64_t i64x4 __attribute__((vector_size(32)));
        const u8x32 q = load_u8(b + 4);
        const i64x4 low = (i64x4)lookup(E2M1_CODES, q & 15), high = (i64x4)lookup(E2M1_CODES, q >> 4);
        codes[0] = (i8x32)__builtin_shufflevector(low, high, 0, 4, 1, 5);
        codes[1] = (i8x32)__builtin_shufflevector(low, high, 2, 6, 3, 7);
    }
};

struct TQ2_0Codes {
    static constexpr int BLOCK = 256, BYTES = 66, SUB = 32;
    static constexpr bool MIN = false, SIGNED = true;
    static inline void decode(const uint8_t* b, i8x32* codes, float* scale, float*) {
        const float d = half_at(b + 64);
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)(q >> (2 * j) & 3) - 1;
                scale[4 * n + j] = d;
            }
        }
    }
};

} // namespace lg::LG_ISA
