// Assembles one instruction set's kernel table; compiled once per instruction set (LG_ISA).
#include "kernels.h"

namespace lg::LG_ISA {

// The families of CMakeLists.txt; each is defined at the end of the family's own file.
#define LG_FAMILY(name) void add_##name(KernelTable&);
#include "families.inc"
#undef LG_FAMILY

extern const KernelTable* table();
const KernelTable* table() {
    static const KernelTable t = [] {
        KernelTable k;
        k.isa = LG_STR(LG_ISA);
#define LG_FAMILY(name) add_##name(k);
#include "families.inc"
#undef LG_FAMILY
        for (const TypeFacts& facts : TYPES) {
            k.type[facts.id].block = facts.block;
            k.type[facts.id].bytes = facts.bytes;
        }
        return k;
    }();
    return &t;
}

} // namespace lg::LG_ISA
