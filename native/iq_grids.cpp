#include "iq_grids.h"

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "iq_grid_points.h"

namespace lg {
namespace {

// `distances`: neighbours at how many of the smallest distances are tried.
IqGrid build(const uint16_t* points, size_t n, int digits, int base, int bits, int distances) {
    IqGrid g;
    g.digits = digits;
    g.base = base;
    g.bits = bits;
    g.points.assign(points, points + n);
    int numbers = 1;
    for (int i = 0; i < digits; ++i) {
        numbers *= base;
    }
    g.entry.assign(size_t(numbers), -1);
    std::vector<std::vector<int16_t>> by_digit{size_t(digits), std::vector<int16_t>(n)};
    for (size_t p = 0; p < n; ++p) {
        for (int i = 0; i < digits; ++i) {
            by_digit[size_t(i)][p] = int16_t(points[p] >> (bits * i) & ((1 << bits) - 1));
        }
        g.entry[size_t(g.number_of(points[p]))] = int32_t(p);
    }
    std::vector<int16_t> distance(n);
    std::vector<uint16_t> list;
    for (int number = 0; number < numbers; ++number) {
        if (g.entry[size_t(number)] >= 0) {
            continue;
        }
        std::fill(distance.begin(), distance.end(), int16_t(0));
        for (int i = 0, rest = number; i < digits; ++i, rest /= base) {
            const int16_t digit = int16_t(rest % base);
            const int16_t* other = by_digit[size_t(i)].data();
            for (size_t p = 0; p < n; ++p) {
                const int16_t d = int16_t(digit - other[p]);
                distance[p] = int16_t(distance[p] + d * d);
            }
        }
        list.clear();
        int16_t last = -1;
        for (int k = 0; k < distances; ++k) {
            int16_t next = INT16_MAX;
            for (size_t p = 0; p < n; ++p) {
                next = std::min(next, distance[p] > last ? distance[p] : int16_t(INT16_MAX));
            }
            for (size_t p = 0; p < n; ++p) {
                if (distance[p] == next) {
                    list.push_back(points[p]);
                }
            }
            last = next;
        }
        list.resize((list.size() + IqGrid::CHUNK - 1) / IqGrid::CHUNK * IqGrid::CHUNK, list[0]);
        const size_t first = g.neighbours.size() / IqGrid::CHUNK, chunks = list.size() / IqGrid::CHUNK;
        g.entry[size_t(number)] = -1 - int32_t(32 * first + chunks);
        g.neighbours.insert(g.neighbours.end(), list.begin(), list.end());
    }
    return g;
}

} // namespace

int IqGrid::number_of(uint32_t code) const {
    int number = 0;
    for (int i = digits - 1; i >= 0; --i) {
        number = number * base + int(code >> (bits * i) & ((1u << bits) - 1));
    }
    return number;
}

const IqGrid& iq_grid(IqGridName name) {
    switch (name) {
    case IqGridName::IQ2_XXS: {
        static const IqGrid g = build(IQ2_XXS_POINTS, std::size(IQ2_XXS_POINTS), 8, 3, 2, 2);
        return g;
    }
    case IqGridName::IQ2_XS: {
        static const IqGrid g = build(IQ2_XS_POINTS, std::size(IQ2_XS_POINTS), 8, 3, 2, 2);
        return g;
    }
    case IqGridName::IQ2_S: {
        static const IqGrid g = build(IQ2_S_POINTS, std::size(IQ2_S_POINTS), 8, 3, 2, 1);
        return g;
    }
    case IqGridName::IQ1: {
        static const IqGrid g = build(IQ1_POINTS, std::size(IQ1_POINTS), 8, 3, 2, 3);
        return g;
    }
    case IqGridName::IQ3_XXS: {
        static const IqGrid g = build(IQ3_XXS_POINTS, std::size(IQ3_XXS_POINTS), 4, 8, 3, 2);
        return g;
    }
    default: {
        static const IqGrid g = build(IQ3_S_POINTS, std::size(IQ3_S_POINTS), 4, 8, 3, 3);
        return g;
    }
    }
}

} // namespace lg
