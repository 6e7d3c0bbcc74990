// How the scales of 16 rows lie in a packed weight, and the mins of types that have them: weight = scale * code + min.
//
//   UNIT        columns that share what lies at the head of a unit
//   UNIT_BYTES  of that head: half floats, a vector of all rows after the other
//   RUN_BYTES   of what follows the codes of each 32 columns, ROW_BYTES of it for a row
//   SUB         columns of one scale, 16 or 32
//   Unit        what is read once per unit; `scale` and `min` of sub-block s of the run whose scales lie at p
#pragma once

#include "packed_codes.h"
#include "simd/simd.h"

namespace lg::LG_ISA {

// One half float per row and run; or two, the second being the min.
template <bool Min> struct HalfScales {
    static constexpr int UNIT = 32, UNIT_BYTES = 0, SUB = 32, ROW_BYTES = 2, RUN_BYTES = Min ? 64 : 32;
    static constexpr bool MIN = Min;
    struct Unit {
        Unit(const uint8_t*, int) {}
        vf scale(const uint8_t* p, int, int part) const { return load_half(p + part * LANES * 2); }
        vf min(const uint8_t* p, int, int part) const { return load_half(p + 32 + part * LANES * 2); }
    };
};

// One half float per row and 256 columns.
struct UnitScales {
    static constexpr int UNIT = 256, UNIT_BYTES = 32, SUB = 32, ROW_BYTES = 0, RUN_BYTES = 0;
    static constexpr bool MIN = false;
    struct Unit {
        vf d;
        Unit(const uint8_t* p, int part) : d(load_half(p + part * LANES * 2)) {}
        vf scale(const uint8_t*, int, int) const { return d; }
        vf min(const uint8_t*, int, int) const { return vf{}; }
    };
};

// One byte per row and 16 columns: half the E4M3 value, as NVFP4 has it; NaN was made 0, signs were taken off.
struct E4M3Scales {
    static constexpr int UNIT = 32, UNIT_BYTES = 0, SUB = 16, ROW_BYTES = 1, RUN_BYTES = 32;
    static constexpr bool MIN = false;
    struct Unit {
        Unit(const uint8_t*, int) {}
        // In place as a float's exponent and mantissa, the exponent moved by the difference of biases and the half.
        vf scale(const uint8_t* p, int s, int part) const {
            const vi code = widen(p + 16 * s + part * LANES);
            const vf normal = (vf)((code << 20) + (119 << 23));
            return code < 8 ? to_float(code) * 0x1p-10f : normal;
        }
        vf min(const uint8_t*, int, int) const { return vf{}; }
    };
};

// One byte e per row and run: 2^(e - 128), as e8m0_halved (quant/fp4.h).
struct E8M0Scales {
    static constexpr int UNIT = 32, UNIT_BYTES = 0, SUB = 32, ROW_BYTES = 1, RUN_BYTES = 16;
    static constexpr bool MIN = false;
    struct Unit {
        Unit(const uint8_t*, int) {}
        vf scale(const uint8_t* p, int, int part) const {
            const vi e = widen(p + part * LANES);
            return (vf)(e < 2 ? (e + 1) * 0x00200000 : (e - 1) << 23);
        }
        vf min(const uint8_t*, int, int) const { return vf{}; }
    };
};

// One integer per row and Sub columns, times a half float per row and 256; mins alike.
template <int Sub, class Integer, bool Min> struct SuperScales {
    static constexpr int UNIT = 256, UNIT_BYTES = Min ? 64 : 32, SUB = Sub, SUBS = 32 / Sub, ROW_BYTES = 1;
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
            return d * to_float(widen((const Integer*)(p + 16 * s + part * LANES)));
        }
        vf min(const uint8_t* p, int s, int part) const {
            return dmin * to_float(widen(p + 16 * SUBS + 16 * s + part * LANES));
        }
    };
};

// The same with scale and min in the low and high half of one byte per row and 16 columns.
struct NibbleScales {
    static constexpr int UNIT = 256, UNIT_BYTES = 64, SUB = 16, ROW_BYTES = 1, RUN_BYTES = 32;
    static constexpr bool MIN = true;
    struct Unit {
        vf d, dmin;
        Unit(const uint8_t* p, int part)
            : d(load_half(p + part * LANES * 2)), dmin(-load_half(p + 32 + part * LANES * 2)) {}
        vf scale(const uint8_t* p, int s, int part) const {
            return d * to_float(widen(p + 16 * s + part * LANES) & 15);
        }
        vf min(const uint8_t* p, int s, int part) const {
            return dmin * to_float(widen(p + 16 * s + part * LANES) >> 4);
        }
    };
};

} // namespace lg::LG_ISA
