// Picks the kernel table at run time: what the machine can run, or what LORAGRAFT_ISA asks for.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lg {

#define LG_DECLARE(isa) namespace isa { const KernelTable* table(); }
LG_DECLARE(baseline)
#ifdef LG_HAVE_avx2
LG_DECLARE(avx2)
#endif
#ifdef LG_HAVE_avx512
LG_DECLARE(avx512)
#endif
#ifdef LG_HAVE_neon
LG_DECLARE(neon)
#endif

namespace {

struct Candidate {
    const char* name;
    bool runs;
    const KernelTable* (*table)();
};

#if defined(__x86_64__)
// Clang's __builtin_cpu_supports knows F16C from version 15 on only.
[[maybe_unused]] bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#elif defined(__aarch64__)
// Armv8.2's dot products and half floats.
[[maybe_unused]] bool has_armv8_2() {
#if defined(__linux__)
    constexpr unsigned long FPHP = 1 << 9, ASIMDHP = 1 << 10, ASIMDDP = 1 << 20, ALL = FPHP | ASIMDHP | ASIMDDP;
    return (getauxval(AT_HWCAP) & ALL) == ALL;
#else
    return true; // every Apple processor
#endif
}
#endif

std::vector<Candidate> candidates() {
    // Best first; the last one runs everywhere.
    return {
#ifdef LG_HAVE_avx512
        {"avx512",
         __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")
             && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni")
             && __builtin_cpu_supports("avx512vbmi"),
         avx512::table},
#endif
#ifdef LG_HAVE_avx2
        {"avx2",
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
             && has_f16c(),
         avx2::table},
#endif
#ifdef LG_HAVE_neon
        {"neon", has_armv8_2(), neon::table},
#endif
        {"baseline", true, baseline::table},
    };
}

const KernelTable& choose() {
    const char* want = std::getenv("LORAGRAFT_ISA");
    return want && *want ? kernels(want) : kernels(isas().front().c_str());
}

} // namespace

const KernelTable& kernels() {
    static const KernelTable& t = choose();
    return t;
}

const KernelTable& kernels(const char* isa) {
    for (const Candidate& c : candidates()) {
        if (c.runs && std::strcmp(isa, c.name) == 0) {
            return *c.table();
        }
    }
    throw std::runtime_error(std::string("no such instruction set in this build or on this machine: ") + isa);
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Candidate& c : candidates()) {
        if (c.runs) {
            names.emplace_back(c.name);
        }
    }
    return names;
}

} // namespace lg
