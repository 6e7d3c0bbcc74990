// The engine's own layout of a weight, made once when a model is opened: groups of 16 rows, interleaved so that a vector
// of codes is 16 rows by 4 columns. Products then need no shuffle and no sum across lanes, whether for one column or for
// many; the bits of a weight stay as many as in the file.
//
// A group is a sequence of units of UNIT columns: the scales that hold for the whole unit, then for each run of 32
// columns its codes in lines of 64 bytes (16 rows x 4), its scales and its mins, 16 rows each.
#pragma once

#include <type_traits>

#include "engine/codes.h"

namespace lg::LG_ISA {

constexpr int GROUP = 16; // rows
constexpr int PARTS = GROUP / LANES;

inline vi load_lanes(const uint8_t* p) {
    vi v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

inline vi bytes_of(uint32_t four) { return int32_t(four) - vi{}; }

// ---- how the codes of a run lie: `put` from code[row][column], `get` word j (columns 4j to 4j + 3) of one part ----

struct Bytes {
    static constexpr int SIZE = 512;
    static void put(uint8_t* run, const uint8_t (*code)[32]) {
        for (int j = 0; j < 8; ++j) {
            for (int r = 0; r < GROUP; ++r) {
                std::memcpy(run + 64 * j + 4 * r, code[r] + 4 * j, 4);
            }
        }
    }
    static inline vi get(const uint8_t* run, int j, int part) { return load_lanes(run + 64 * j + part * LANES * 4); }
};

// Words 2l and 2l + 1 in the low and high nibbles of line l.
struct Nibbles {
    static constexpr int SIZE = 256;
    static void put(uint8_t* run, const uint8_t (*code)[32]) {
        for (int i = 0; i < 256; ++i) {
            const int row = i % 64 / 4, column = i / 64 * 8 + i % 4;
            run[i] = uint8_t((code[row][column] & 15) | (code[row][column + 4] & 15) << 4);
        }
    }
    static inline vi get(const uint8_t* run, int j, int part) {
        const vi line = load_lanes(run + 64 * (j / 2) + part * LANES * 4);
        return (j % 2 ? line >> 4 : line) & bytes_of(0x0f0f0f0f);
    }
};

// Nibbles, and High more bits of every code in as many lines for each 8 / High words.
template <int High> struct NibblesAnd {
    static constexpr int SIZE = 256 + 64 * High, WORDS = 8 / High;
    static void put(uint8_t* run, const uint8_t (*code)[32]) {
        Nibbles::put(run, code);
        std::memset(run + 256, 0, 64 * High);
        for (int j = 0; j < 8; ++j) {
            for (int i = 0; i < 64; ++i) {
                run[256 + 64 * (j / WORDS) + i] |= uint8_t((code[i / 4][4 * j + i % 4] >> 4) << (High * (j % WORDS)));
            }
        }
    }
    static inline vi get(const uint8_t* run, int j, int part) {
        const vi line = load_lanes(run + 256 + 64 * (j / WORDS) + part * LANES * 4);
        const int shift = High * (j % WORDS) - 4; // to bits 4 and up of each byte
        const vi high = (shift < 0 ? line << -shift : line >> shift) & bytes_of(0x10101010u * ((1 << High) - 1));
        return Nibbles::get(run, j, part) | high;
    }
};

// ---- how the scales lie ----

// One half float per row and run.
struct HalfScales {
    static constexpr int UNIT = 32, UNIT_BYTES = 0, SUB = 32, RUN_BYTES = 32;
    static constexpr bool MIN = false;
    struct Unit {
        Unit(const uint8_t*, int) {}
        vf scale(const uint8_t* p, int, int part) const { return load_half(p + part * LANES * 2); }
        vf min(const uint8_t*, int, int) const { return vf{}; }
    };
};

// One byte per row and 16 columns: half the E4M3 value, as NVFP4 has it; NaN was made 0, signs were taken off.
struct E4M3Scales {
    static constexpr int UNIT = 32, UNIT_BYTES = 0, SUB = 16, RUN_BYTES = 32;
    static constexpr bool MIN = false;
    struct Unit {
        Unit(const uint8_t*, int) {}
        // In place as a float's exponent and mantissa, the exponent moved by the difference of biases and the half.
        vf scale(const uint8_t* p, int s, int part) const {
            const vi code = widen(p + 16 * s + part * LANES);
            const vf normal = (vf)((code << 20) + (119 << 23));
            return code < 8 ? __builtin_convertvector(code, vf) * 0x1p-10f : normal;
        }
        vf min(const uint8_t*, int, int) const { return vf{}; }
    };
};

// One integer per row and Sub columns, times a half float per row and 256; mins alike.
template <int Sub, class Integer, bool Min> struct SuperScales {
    static constexpr int UNIT = 256, UNIT_BYTES = Min ? 64 : 32, SUB = Sub, SUBS = 32 / Sub;
    static constexpr int RUN_BYTES = SUBS * 16 * (Min ? 2 : 1);
    static constexpr bool MIN = Min;
    struct Unit {
        vf d, dmin{};
        Unit(const uint8_t* p, int part) : d(load_half(p + part * LANES * 2)) {
            if constexpr (Min) {
                dmin = -load_half(p + 32 + part * LANES * 2);
            }
        }
        vf scale(const uint8_t* p, int s, int part) const {
            return d * __builtin_convertvector(widen((const Integer*)(p + 16 * s + part * LANES)), vf);
        }
        vf min(const uint8_t* p, int s, int part) const {
            return dmin * __builtin_convertvector(widen(p + 16 * SUBS + 16 * s + part * LANES), vf);
        }
    };
};

// ---- the types that have such a layout ----
// TYPE: codes.h's; `code` is what is kept of a decoded code; OFFSET what the product's codes are too high by;
// `halves` and `integers` fill in the scales of one block: of a unit, and of each SUB columns.

template <class Type, class Store_, class Scales_, int32_t Offset> struct Packed {
    using T = Type;
    using Store = Store_;
    using Scales = Scales_;
    static constexpr int32_t OFFSET = Offset;
    static constexpr bool SIGNED = false;
    static constexpr int UNIT = Scales::UNIT, RUNS = UNIT / 32;
    static constexpr int RUN_BYTES = Store::SIZE + Scales::RUN_BYTES;
    static constexpr int UNIT_BYTES = Scales::UNIT_BYTES + RUNS * RUN_BYTES;
    static uint8_t code(int8_t c) { return uint8_t(c + Offset); }
    static inline vi codes(const uint8_t* run, int j, int part) { return Store::get(run, j, part); }
};

// Codes that stand for the values of a table.
template <class Type, class Scales_, const int8_t (&Values)[16], int32_t Offset>
struct PackedTable : Packed<Type, Nibbles, Scales_, Offset> {
    static constexpr bool SIGNED = Offset == 0;
    static uint8_t code(int8_t c) { return TABLE.index[uint8_t(c)]; }
    struct Table {
        int8_t of[16];
        uint8_t index[256]; // of a value; the lower of two for the same (E2M1's zeros)
        constexpr Table() : of(), index() {
            for (int i = 15; i >= 0; --i) {
                of[i] = int8_t(uint8_t(Values[i] + Offset));
                index[uint8_t(Values[i])] = uint8_t(i);
            }
        }
    };
    static constexpr Table TABLE{};
    static inline vi codes(const uint8_t* run, int j, int part) {
        return lookup_lanes(TABLE.of, Nibbles::get(run, j, part));
    }
};

struct Q4_0Packed : Packed<Q4_0Codes, Nibbles, HalfScales, 8> {
    static void scales(const uint8_t* b, uint8_t*, uint8_t* run, int) { std::memcpy(run, b, 2); }
};

struct Q8_0Packed : Packed<Q8_0Codes, Bytes, HalfScales, PANEL_OFFSET<true>> {
    static constexpr bool SIGNED = OFFSET == 0;
    static void scales(const uint8_t* b, uint8_t*, uint8_t* run, int) { std::memcpy(run, b, 2); }
};

struct IQ4_NLPacked : PackedTable<IQ4_NLCodes, HalfScales, IQ4_VALUES, PANEL_OFFSET<true>> {
    static void scales(const uint8_t* b, uint8_t*, uint8_t* run, int) { std::memcpy(run, b, 2); }
};

struct NVFP4Packed : PackedTable<NVFP4Codes, E4M3Scales, E2M1_CODES, 12> {
    static void scales(const uint8_t* b, uint8_t*, uint8_t* run, int i) {
        for (int s = 0; s < 2; ++s) {
            const uint8_t e4m3 = b[2 * i + s] & 0x7f;
            run[16 * s] = b[2 * i + s] == 0x7f ? 0 : e4m3;
        }
    }
};

template <class T> struct KPacked : Packed<T, std::conditional_t<std::is_same_v<T, Q4_KCodes>, Nibbles, NibblesAnd<1>>,
                                          SuperScales<32, uint8_t, true>, 0> {
    static void scales(const uint8_t* b, uint8_t* unit, uint8_t* run, int i) {
        std::memcpy(unit, b, 2);
        std::memcpy(unit + 32, b + 2, 2);
        uint8_t scale[8], min[8];
        six_bit_scales(b + 4, scale, min);
        run[0] = scale[i];
        run[16] = min[i];
    }
};

struct Q6_KPacked : Packed<Q6_KCodes, NibblesAnd<2>, SuperScales<16, int8_t, false>, 32> {
    static void scales(const uint8_t* b, uint8_t* unit, uint8_t* run, int i) {
        std::memcpy(unit, b + 208, 2);
        run[0] = b[192 + 2 * i];
        run[16] = b[192 + 2 * i + 1];
    }
};

struct IQ4_XSPacked : PackedTable<IQ4_XSCodes, SuperScales<32, int8_t, false>, IQ4_VALUES, PANEL_OFFSET<true>> {
    static void scales(const uint8_t* b, uint8_t* unit, uint8_t* run, int i) {
        std::memcpy(unit, b, 2);
        run[0] = uint8_t(IQ4_XSCodes::six_bits(b, i) - 32);
    }
};

} // namespace lg::LG_ISA
