// How the codes of 16 rows by 32 columns (a run) lie in a packed weight: lines of 64 bytes, 16 rows by 4 bytes, so that a vector
// of one line holds a word, four neighbouring columns, of each of its rows.
//
//   SIZE  bytes of a run
//   put   a run from code[row][column]
//   get   word j (columns 4j to 4j + 3) of the rows of one part, LANES of the 16
#pragma once

#include "simd/bytes.h"

namespace lg::LG_ISA {

constexpr int GROUP = 16; // rows
constexpr int PARTS = GROUP / LANES;
constexpr int LINE = 4 * GROUP;

inline vi load_lanes(const uint8_t* p) {
    vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vi in_every_byte(uint8_t byte) { return splat(int32_t(0x01010101u * byte)); }

// `Bits` bits of every code, 8 / Bits words in a line, the first in the lowest bits.
template <int Bits> struct Field {
    static constexpr int WORDS = 8 / Bits, SIZE = 8 / WORDS * LINE;
    static void put(uint8_t* run, const uint8_t (*code)[32], int from_bit = 0) {
        std::memset(run, 0, SIZE);
        for (int i = 0; i < 8 * LINE; ++i) {
            const int j = i / LINE, byte = i % LINE;
            const int bits = code[byte / 4][4 * j + byte % 4] >> from_bit & ((1 << Bits) - 1);
            run[j / WORDS * LINE + byte] |= uint8_t(bits << Bits * (j % WORDS));
        }
    }
    // The bits moved up to bit `to` and higher.
    template <int To = 0> static inline vi get(const uint8_t* run, int j, int part) {
        const vi line = load_lanes(run + LINE * (j / WORDS) + part * LANES * 4);
        const int shift = Bits * (j % WORDS) - To;
        return (shift < 0 ? line << -shift : line >> shift) & in_every_byte(((1 << Bits) - 1) << To);
    }
};

struct Bytes {
    static constexpr int SIZE = 8 * LINE;
    static void put(uint8_t* run, const uint8_t (*code)[32]) {
        for (int j = 0; j < 8; ++j) {
            for (int r = 0; r < GROUP; ++r) {
                std::memcpy(run + LINE * j + 4 * r, code[r] + 4 * j, 4);
            }
        }
    }
    static inline vi get(const uint8_t* run, int j, int part) { return load_lanes(run + LINE * j + part * LANES * 4); }
};

// Codes of Low bits, or of Low + High: then the high bits' lines follow the low bits'.
template <int Low, int High = 0> struct Bits {
    static constexpr int SIZE = Field<Low>::SIZE + Field<High>::SIZE;
    static void put(uint8_t* run, const uint8_t (*code)[32]) {
        Field<Low>::put(run, code);
        Field<High>::put(run + Field<Low>::SIZE, code, Low);
    }
    static inline vi get(const uint8_t* run, int j, int part) {
        return Field<Low>::get(run, j, part) | Field<High>::template get<Low>(run + Field<Low>::SIZE, j, part);
    }
};
template <int Low> struct Bits<Low, 0> : Field<Low> {};

} // namespace lg::LG_ISA
