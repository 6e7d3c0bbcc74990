// The tensor types that hold weights, from the table in src/loragraft/quants/types.py (make_types.py).
#pragma once

#include <cstdint>

namespace lg {

// ggml's type numbers (ggml.h).
enum TypeId : int {
#define LG_TYPE(name, id, block, bytes, first, second) name = id,
#include "types.inc"
#undef LG_TYPE
};

struct TypeFacts {
    int id = -1;
    int block = 0; // weights per block
    int bytes = 0; // bytes per block
    // Where a block keeps its F16 scale and minimum, as byte offsets; -1: none. -2: they are no F16, or in pieces, so that
    // only the weights tell whether they are finite.
    int first = -1;
    int second = -1;
};

constexpr TypeFacts TYPES[] = {
#define LG_TYPE(name, id, block, bytes, first, second) {id, block, bytes, first, second},
#include "types.inc"
#undef LG_TYPE
};

constexpr int TYPE_COUNT = [] {
    int most = 0;
    for (const TypeFacts& type : TYPES) {
        most = type.id > most ? type.id : most;
    }
    return most + 1;
}();

// The facts of a type, by its number; of no type, a block of 0 weights.
constexpr TypeFacts type_facts(int id) {
    for (const TypeFacts& type : TYPES) {
        if (type.id == id) {
            return type;
        }
    }
    return {};
}

constexpr int bytes_of(TypeId id) { return type_facts(id).bytes; }
constexpr int block_of(TypeId id) { return type_facts(id).block; }

} // namespace lg
