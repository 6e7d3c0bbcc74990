// The engine's own layout of a weight, made once when a model is opened: groups of 16 rows, interleaved so that a vector
// of codes is 16 rows by 4 columns. Products then need no shuffle and no sum across lanes, whether for one column or for
// many; the bits of a weight stay as many as in the file.
//
// A group is a sequence of units: the scales that hold for the whole unit, then for each run of 32 columns its codes
// (packed_codes.h) and its scales and mins (packed_scales.h).
#pragma once

#include "codes.h"
#include "packed_scales.h"

namespace lg::LG_ISA {

// What is common to the types below.
//   T       codes.h's struct of the type
//   OFFSET  what the product's codes are too high by
//   SIGNED  whether they may be negative
//   code    what is kept of a decoded code
//   codes   word j of a run for the product
//   scales  takes those of one row's run i from its block b: to `unit`, where the row's half float lies, and `own`, where
//           its part of the run's scales lies
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
struct PackedTable : Packed<Type, Bits<4>, Scales_, Offset> {
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
        return lookup_lanes(TABLE.of, Bits<4>::get(run, j, part));
    }
};

// Types whose block begins with its half float, and those with a min next to it.
template <class P> struct FirstHalf : P {
    static void scales(const uint8_t* b, int, uint8_t*, uint8_t* own) { std::memcpy(own, b, 2); }
};
template <class P> struct FirstHalves : P {
    static void scales(const uint8_t* b, int, uint8_t*, uint8_t* own) {
        std::memcpy(own, b, 2);
        std::memcpy(own + 32, b + 2, 2);
    }
};

struct Q8_0Store : Packed<Q8_0Codes, Bytes, HalfScales<false>, PRODUCT_OFFSET> {
    static constexpr bool SIGNED = OFFSET == 0;
};
using Q8_0Packed = FirstHalf<Q8_0Store>;
using Q4_0Packed = FirstHalf<Packed<Q4_0Codes, Bits<4>, HalfScales<false>, 8>>;
using Q5_0Packed = FirstHalf<Packed<Q5_0Codes, Bits<4, 1>, HalfScales<false>, 16>>;
using IQ4_NLPacked = FirstHalf<PackedTable<IQ4_NLCodes, HalfScales<false>, IQ4_VALUES, PRODUCT_OFFSET>>;
using Q4_1Packed = FirstHalves<Packed<Q4_1Codes, Bits<4>, HalfScales<true>, 0>>;
using Q5_1Packed = FirstHalves<Packed<Q5_1Codes, Bits<4, 1>, HalfScales<true>, 0>>;

struct MXFP4Packed : PackedTable<MXFP4Codes, E8M0Scales, E2M1_CODES, 12> {
    static void scales(const uint8_t* b, int, uint8_t*, uint8_t* own) { own[0] = b[0]; }
};

struct NVFP4Packed : PackedTable<NVFP4Codes, E4M3Scales, E2M1_CODES, 12> {
    static void scales(const uint8_t* b, int i, uint8_t*, uint8_t* own) {
        for (int s = 0; s < 2; ++s) {
            const uint8_t e4m3 = b[2 * i + s] & 0x7f;
            own[16 * s] = b[2 * i + s] == 0x7f ? 0 : e4m3;
        }
    }
};

template <class T, class Store> struct PackedK45 : Packed<T, Store, SuperScales<32, uint8_t, true>, 0> {
    static void scales(const uint8_t* b, int i, uint8_t* unit, uint8_t* own) {
        std::memcpy(unit, b, 2);
        std::memcpy(unit + 32, b + 2, 2);
        uint8_t scale[8], min[8];
        six_bit_scales(b + 4, scale, min);
        own[0] = scale[i];
        own[16] = min[i];
    }
};
using Q4_KPacked = PackedK45<Q4_KCodes, Bits<4>>;
using Q5_KPacked = PackedK45<Q5_KCodes, Bits<4, 1>>;

struct Q6_KPacked : Packed<Q6_KCodes, Bits<4, 2>, SuperScales<16, int8_t, false>, 32> {
    static void scales(const uint8_t* b, int i, uint8_t* unit, uint8_t* own) {
        std::memcpy(unit, b + 208, 2);
        own[0] = b[192 + 2 * i];
        own[16] = b[192 + 2 * i + 1];
    }
};

struct Q3_KPacked : Packed<Q3_KCodes, Bits<2, 1>, SuperScales<16, int8_t, false>, 4> {
    static void scales(const uint8_t* b, int i, uint8_t* unit, uint8_t* own) {
        int8_t scale[16];
        Q3_KCodes::integer_scales(b, scale);
        std::memcpy(unit, b + 108, 2);
        own[0] = uint8_t(scale[2 * i]);
        own[16] = uint8_t(scale[2 * i + 1]);
    }
};

struct Q2_KPacked : Packed<Q2_KCodes, Bits<2>, NibbleScales, 0> {
    static void scales(const uint8_t* b, int i, uint8_t* unit, uint8_t* own) {
        std::memcpy(unit, b + 80, 2);
        std::memcpy(unit + 32, b + 82, 2);
        own[0] = b[2 * i];
        own[16] = b[2 * i + 1];
    }
};

struct IQ4_XSPacked : PackedTable<IQ4_XSCodes, SuperScales<32, int8_t, false>, IQ4_VALUES, PRODUCT_OFFSET> {
    static void scales(const uint8_t* b, int i, uint8_t* unit, uint8_t* own) {
        std::memcpy(unit, b, 2);
        own[0] = uint8_t(IQ4_XSCodes::integer_scale(b, i));
    }
};

struct TQ2_0Packed : Packed<TQ2_0Codes, Bits<2>, UnitScales, 1> {
    static void scales(const uint8_t* b, int, uint8_t* unit, uint8_t*) { std::memcpy(unit, b + 64, 2); }
};

} // namespace lg::LG_ISA
