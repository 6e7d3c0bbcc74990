// The grids of the IQ types as the kernels search them; see src/loragraft/quants/iq_grids.py. Built on first use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lg {

// A group's digits appear in two forms: as a *number* in base 3 or 8, the first digit lowest, and as a *code* with two or
// three bits for each digit.
struct IqGrid {
    int digits, base, bits;
    // Of every point, its code.
    std::vector<uint16_t> points;
    // Of every number: its point, or -1 - (32 * first chunk + chunks) of its neighbours.
    std::vector<int32_t> entry;
    // The codes of neighbours in the order in which they are tried, in chunks of CHUNK; the last chunk of a list is
    // filled up with its first neighbour, which as an equal of an earlier one cannot win.
    static constexpr int CHUNK = 16;
    std::vector<uint16_t> neighbours;

    struct List {
        const uint16_t* codes;
        int chunks;
    };
    List list(int32_t negative_entry) const {
        const uint32_t packed = uint32_t(-1 - negative_entry);
        return {neighbours.data() + size_t(packed / 32) * CHUNK, int(packed % 32)};
    }
    int number_of(uint32_t code) const;
};

enum class IqGridName { IQ2_XXS, IQ2_XS, IQ2_S, IQ1, IQ3_XXS, IQ3_S };

// Thread-safe; the first call for a grid takes some hundredths of a second.
const IqGrid& iq_grid(IqGridName name);

} // namespace lg
