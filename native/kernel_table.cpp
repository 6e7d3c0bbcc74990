// Assembles one instruction set's kernel table; compiled once per instruction set (LG_ISA).
#include "kernels.h"

namespace lg::LG_ISA {

// One line per family; each is defined at the end of the family's own file.
void add_floats(KernelTable&);
void add_legacy(KernelTable&);
void add_kquants(KernelTable&);
void add_delta(KernelTable&);
void add_activations(KernelTable&);
void add_attention(KernelTable&);
void add_linear_f32(KernelTable&);
void add_linear_q8(KernelTable&);
void add_linear_packed(KernelTable&);
void add_pointwise(KernelTable&);
void add_fp4(KernelTable&);
void add_ternary(KernelTable&);
void add_iq4(KernelTable&);
void add_nvfp4(KernelTable&);
void add_iq_lattice(KernelTable&);
void add_iq1(KernelTable&);

extern const KernelTable* table();
const KernelTable* table() {
    static const KernelTable t = [] {
        KernelTable k;
        k.isa = LG_STR(LG_ISA);
        add_floats(k);
        add_legacy(k);
        add_kquants(k);
        add_delta(k);
        add_activations(k);
        add_attention(k);
        add_linear_f32(k);
        add_linear_q8(k);
        add_linear_packed(k);
        add_pointwise(k);
        add_fp4(k);
        add_ternary(k);
        add_iq4(k);
        add_nvfp4(k);
        add_iq_lattice(k);
        add_iq1(k);
        return k;
    }();
    return &t;
}

} // namespace lg::LG_ISA
