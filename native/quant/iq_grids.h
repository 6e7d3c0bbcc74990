// The grids of the IQ types as the kernels search them; see src/loragraft/quants/iq_grids.py. Built on first use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lg {

// A group's digits appear in two forms: as a *number* in base 3 or 8, the first digit lowest, and as a *code* of 16 bits:
// two bits for each of eight ternary digits, or four for each of four octal ones, of which the highest is the digit's
// place modulo 2 (so that two digits' tables of eight values make one of sixteen).
struct IqGrid {
    int digits, base;
    // Of every point, its code.
    std::vector<uint16_t> points;
    // Of every number: its point, or -1.
    std::vector<int16_t> point;
    // Of every number: its candidates, 256 * first vector + how many vectors. A point's only candidate is itself.
    std::vector<uint32_t> entry;
    // The codes of candidates in vectors of `lanes`. A list in the order in which it is tried fills one lane after
    // another, so that of equals the one in the lowest lane comes first; what is left of the last lanes repeats the
    // first candidate, which as an equal of an earlier one cannot win.
    std::vector<uint16_t> candidates;

    int bits() const { return base == 3 ? 2 : 4; }
    uint32_t digit(uint32_t code, int i) const { return code >> (bits() * i) & (base == 3 ? 3 : 7); }
    int number_of(uint32_t code) const;
    uint16_t code_of(int number) const;
};

enum class IqGridName { IQ2_XXS, IQ2_XS, IQ2_S, IQ1, IQ3_XXS, IQ3_S };

// The grid for kernels of `lanes` lanes (4, 8 or 16). Thread-safe; the first call takes some hundredths of a second.
const IqGrid& iq_grid(IqGridName name, int lanes);

} // namespace lg
