#include "quant/iq_grids.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <iterator>

#include "iq_grid_points.h"

namespace lg {
namespace {

// Where the facts of a grid are, and at how many of the smallest distances neighbours are tried.
struct Facts {
    const uint16_t* points; // digits of two or three bits
    size_t n;
    int digits, base, distances;
};

Facts facts(IqGridName name) {
    switch (name) {
    case IqGridName::IQ2_XXS: return {IQ2_XXS_POINTS, std::size(IQ2_XXS_POINTS), 8, 3, 2};
    case IqGridName::IQ2_XS: return {IQ2_XS_POINTS, std::size(IQ2_XS_POINTS), 8, 3, 2};
    case IqGridName::IQ2_S: return {IQ2_S_POINTS, std::size(IQ2_S_POINTS), 8, 3, 1};
    case IqGridName::IQ1: return {IQ1_POINTS, std::size(IQ1_POINTS), 8, 3, 3};
    case IqGridName::IQ3_XXS: return {IQ3_XXS_POINTS, std::size(IQ3_XXS_POINTS), 4, 8, 2};
    case IqGridName::IQ3_S: return {IQ3_S_POINTS, std::size(IQ3_S_POINTS), 4, 8, 3};
    }
    std::abort();
}

// A list of candidates at the end of the grid's, lane by lane; its entry.
uint32_t append(IqGrid& g, const std::vector<uint16_t>& list, int lanes) {
    const size_t vectors = (list.size() + size_t(lanes) - 1) / size_t(lanes), first = g.candidates.size();
    g.candidates.resize(first + vectors * size_t(lanes), list[0]);
    for (size_t i = 0; i < list.size(); ++i) {
        g.candidates[first + i % vectors * size_t(lanes) + i / vectors] = list[i];
    }
    return uint32_t(first / size_t(lanes) * 256 + vectors);
}

IqGrid build(const Facts& f, int lanes) {
    IqGrid g;
    g.digits = f.digits;
    g.base = f.base;
    const int fact_bits = f.base == 3 ? 2 : 3;
    int numbers = 1;
    for (int i = 0; i < f.digits; ++i) {
        numbers *= f.base;
    }
    g.point.assign(size_t(numbers), -1);
    g.entry.resize(size_t(numbers));
    std::vector<std::vector<int16_t>> by_digit(size_t(f.digits));
    for (size_t p = 0; p < f.n; ++p) {
        int number = 0;
        for (int i = f.digits - 1; i >= 0; --i) {
            const int digit = f.points[p] >> (fact_bits * i) & ((1 << fact_bits) - 1);
            number = number * f.base + digit;
            by_digit[size_t(i)].push_back(int16_t(digit));
        }
        g.points.push_back(g.code_of(number));
        g.point[size_t(number)] = int16_t(p);
    }
    std::vector<int16_t> distance(f.n);
    std::vector<uint16_t> list;
    for (int number = 0; number < numbers; ++number) {
        list.clear();
        if (g.point[size_t(number)] >= 0) {
            list.push_back(g.code_of(number));
            g.entry[size_t(number)] = append(g, list, lanes);
            continue;
        }
        std::fill(distance.begin(), distance.end(), int16_t(0));
        for (int i = 0, rest = number; i < f.digits; ++i, rest /= f.base) {
            const int16_t digit = int16_t(rest % f.base);
            const int16_t* other = by_digit[size_t(i)].data();
            for (size_t p = 0; p < f.n; ++p) {
                const int16_t d = int16_t(digit - other[p]);
                distance[p] = int16_t(distance[p] + d * d);
            }
        }
        int16_t last = -1;
        for (int k = 0; k < f.distances; ++k) {
            int16_t next = INT16_MAX;
            for (size_t p = 0; p < f.n; ++p) {
                next = std::min(next, distance[p] > last ? distance[p] : int16_t(INT16_MAX));
            }
            for (size_t p = 0; p < f.n; ++p) {
                if (distance[p] == next) {
                    list.push_back(g.points[p]);
                }
            }
            last = next;
        }
        g.entry[size_t(number)] = append(g, list, lanes);
    }
    return g;
}

template <IqGridName NAME>
const IqGrid& one(int lanes) {
    if (lanes == 16) {
        static const IqGrid g = build(facts(NAME), 16);
        return g;
    }
    if (lanes == 8) {
        static const IqGrid g = build(facts(NAME), 8);
        return g;
    }
    static const IqGrid g = build(facts(NAME), 4);
    return g;
}

} // namespace

int IqGrid::number_of(uint32_t code) const {
    int number = 0;
    for (int i = digits - 1; i >= 0; --i) {
        number = number * base + int(digit(code, i));
    }
    return number;
}

uint16_t IqGrid::code_of(int number) const {
    uint32_t code = 0;
    for (int i = 0; i < digits; ++i, number /= base) {
        const uint32_t place = base == 3 ? 0 : uint32_t(i % 2) << 3;
        code |= (uint32_t(number % base) | place) << (bits() * i);
    }
    return uint16_t(code);
}

const IqGrid& iq_grid(IqGridName name, int lanes) {
    switch (name) {
    case IqGridName::IQ2_XXS: return one<IqGridName::IQ2_XXS>(lanes);
    case IqGridName::IQ2_XS: return one<IqGridName::IQ2_XS>(lanes);
    case IqGridName::IQ2_S: return one<IqGridName::IQ2_S>(lanes);
    case IqGridName::IQ1: return one<IqGridName::IQ1>(lanes);
    case IqGridName::IQ3_XXS: return one<IqGridName::IQ3_XXS>(lanes);
    case IqGridName::IQ3_S: return one<IqGridName::IQ3_S>(lanes);
    }
    std::abort();
}

} // namespace lg
