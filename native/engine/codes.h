// The codes of each quantized type's block, as 8-bit integers; packed.h says how the engine keeps them and their scales.
//
//   BLOCK, BYTES  weights and bytes of a block (at most 256 weights)
//   decode        one block: BLOCK / 32 vectors of codes
//
// The layouts are ggml's (ggml-common.h, dequantize_row_* in ggml-quants.c).
#pragma once

#include "simd/bytes.h"

namespace lg::LG_ISA {

struct Q8_0Codes {
    static constexpr int BLOCK = 32, BYTES = 34;
    static inline void decode(const uint8_t* b, i8x32* codes) { codes[0] = (i8x32)load_u8(b + 2); }
};

struct Q4_0Codes {
    static constexpr int BLOCK = 32, BYTES = 18;
    static inline void decode(const uint8_t* b, i8x32* codes) { codes[0] = (i8x32)nibbles16(b + 2) - 8; }
};

struct Q4_1Codes {
    static constexpr int BLOCK = 32, BYTES = 20;
    static inline void decode(const uint8_t* b, i8x32* codes) { codes[0] = (i8x32)nibbles16(b + 4); }
};

struct Q5_0Codes {
    static constexpr int BLOCK = 32, BYTES = 22;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        codes[0] = (i8x32)(nibbles16(b + 6) | (bits32(b + 2) & 16)) - 16;
    }
};

struct Q5_1Codes {
    static constexpr int BLOCK = 32, BYTES = 24;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        codes[0] = (i8x32)(nibbles16(b + 8) | (bits32(b + 4) & 16));
    }
};

struct Q2_KCodes {
    static constexpr int BLOCK = 256, BYTES = 84;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 16 + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)(q >> (2 * j) & 3);
            }
        }
    }
};

struct Q3_KCodes {
    static constexpr int BLOCK = 256, BYTES = 110;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        const u8x32 high = load_u8(b);
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 32 + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)((q >> (2 * j) & 3) | (high >> (4 * n + j) & 1) << 2) - 4;
            }
        }
    }
    static inline void integer_scales(const uint8_t* b, int8_t* scale) { // 16
        uint32_t a[3];
        std::memcpy(a, b + 96, 12);
        const uint32_t six_bits[4] = {(a[0] & 0x0f0f0f0f) | (a[2] & 0x03030303) << 4,
                                      (a[1] & 0x0f0f0f0f) | (a[2] >> 2 & 0x03030303) << 4,
                                      (a[0] >> 4 & 0x0f0f0f0f) | (a[2] >> 4 & 0x03030303) << 4,
                                      (a[1] >> 4 & 0x0f0f0f0f) | (a[2] >> 6 & 0x03030303) << 4};
        std::memcpy(scale, six_bits, 16);
        for (int i = 0; i < 16; ++i) {
            scale[i] = int8_t(scale[i] - 32);
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

struct Q4_KCodes {
    static constexpr int BLOCK = 256, BYTES = 144;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        for (int j = 0; j < 4; ++j) {
            const u8x32 q = load_u8(b + 16 + 32 * j);
            codes[2 * j] = (i8x32)(q & 15);
            codes[2 * j + 1] = (i8x32)(q >> 4);
        }
    }
};

struct Q5_KCodes {
    static constexpr int BLOCK = 256, BYTES = 176;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        const u8x32 high = load_u8(b + 16);
        for (int j = 0; j < 4; ++j) {
            const u8x32 q = load_u8(b + 48 + 32 * j);
            codes[2 * j] = (i8x32)((q & 15) | (high >> (2 * j) & 1) << 4);
            codes[2 * j + 1] = (i8x32)(q >> 4 | (high >> (2 * j + 1) & 1) << 4);
        }
    }
};

struct Q6_KCodes {
    static constexpr int BLOCK = 256, BYTES = 210;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        for (int n = 0; n < 2; ++n) {
            const u8x32 q0 = load_u8(b + 64 * n), q1 = load_u8(b + 64 * n + 32), high = load_u8(b + 128 + 32 * n);
            codes[4 * n] = (i8x32)((q0 & 15) | (high & 3) << 4) - 32;
            codes[4 * n + 1] = (i8x32)((q1 & 15) | (high >> 2 & 3) << 4) - 32;
            codes[4 * n + 2] = (i8x32)(q0 >> 4 | (high >> 4 & 3) << 4) - 32;
            codes[4 * n + 3] = (i8x32)(q1 >> 4 | high >> 6 << 4) - 32;
        }
    }
};

// The 16 values of IQ4_NL and IQ4_XS, and those of E2M1, doubled.
inline constexpr int8_t IQ4_VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
inline constexpr int8_t E2M1_CODES[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct IQ4_NLCodes {
    static constexpr int BLOCK = 32, BYTES = 18;
    static inline void decode(const uint8_t* b, i8x32* codes) { codes[0] = lookup(IQ4_VALUES, nibbles16(b + 2)); }
};

struct IQ4_XSCodes {
    static constexpr int BLOCK = 256, BYTES = 136;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        for (int i = 0; i < 8; ++i) {
            codes[i] = lookup(IQ4_VALUES, nibbles16(b + 8 + 16 * i));
        }
    }
    static inline int integer_scale(const uint8_t* b, int i) {
        const int high = b[2] | b[3] << 8;
        return ((b[4 + i / 2] >> (4 * (i % 2)) & 15) | (high >> (2 * i) & 3) << 4) - 32;
    }
};

struct MXFP4Codes {
    static constexpr int BLOCK = 32, BYTES = 17;
    static inline void decode(const uint8_t* b, i8x32* codes) { codes[0] = lookup(E2M1_CODES, nibbles16(b + 1)); }
};

struct NVFP4Codes {
    static constexpr int BLOCK = 64, BYTES = 36;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        // Each 8 bytes are 16 weights: 8 in the low nibbles, 8 in the high ones.
        typedef int64_t i64x4 __attribute__((vector_size(32)));
        const u8x32 q = load_u8(b + 4);
        const i64x4 low = (i64x4)lookup(E2M1_CODES, q & 15), high = (i64x4)lookup(E2M1_CODES, q >> 4);
        codes[0] = (i8x32)__builtin_shufflevector(low, high, 0, 4, 1, 5);
        codes[1] = (i8x32)__builtin_shufflevector(low, high, 2, 6, 3, 7);
    }
};

struct TQ2_0Codes {
    static constexpr int BLOCK = 256, BYTES = 66;
    static inline void decode(const uint8_t* b, i8x32* codes) {
        for (int n = 0; n < 2; ++n) {
            const u8x32 q = load_u8(b + 32 * n);
            for (int j = 0; j < 4; ++j) {
                codes[4 * n + j] = (i8x32)(q >> (2 * j) & 3) - 1;
            }
        }
    }
};

} // namespace lg::LG_ISA
