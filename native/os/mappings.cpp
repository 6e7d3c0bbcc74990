#include "os/mappings.h"

#include <atomic>
#include <csignal>
#include <cstdint>
#include <mutex>

#include <sys/mman.h>
#include <unistd.h>

namespace lg {
namespace {

// Read by the handler, in whatever thread it runs: plain memory and atomics, no locks.
struct Watched {
    std::atomic<uintptr_t> start{0}; // 0: free
    std::atomic<uintptr_t> stop{0};
    std::atomic<bool> damaged{false};
};
constexpr int SLOTS = 4096;
Watched watched[SLOTS];
std::mutex writing; // of `watched`
struct sigaction before = {}; // what SIGBUS did in this process before

void on_bus_error(int, siginfo_t* info, void*) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(info->si_addr), page = uintptr_t(sysconf(_SC_PAGESIZE));
    for (int slot = 0; slot < SLOTS; ++slot) {
        Watched& w = watched[slot];
        if (w.start.load() == 0 || at < w.start.load() || at >= w.stop.load()) {
            continue;
        }
        void* where = reinterpret_cast<void*>(at / page * page);
        if (mmap(where, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == where) {
            w.damaged.store(true);
            return; // the read is tried again
        }
    }
    sigaction(SIGBUS, &before, nullptr); // not ours: the access is tried again, as if we had not been here
}

} // namespace

void guard_mappings() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action = {};
        action.sa_sigaction = on_bus_error;
        action.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGBUS, &action, &before);
    });
}

int watch_mapping(const void* start, size_t length) {
    const std::lock_guard<std::mutex> lock(writing);
    for (int slot = 0; slot < SLOTS; ++slot) {
        Watched& w = watched[slot];
        if (w.start.load() == 0) {
            w.damaged.store(false);
            w.stop.store(reinterpret_cast<uintptr_t>(start) + length);
            w.start.store(reinterpret_cast<uintptr_t>(start));
            return slot;
        }
    }
    return -1;
}

void forget_mapping(int slot) {
    const std::lock_guard<std::mutex> lock(writing);
    if (slot >= 0 && slot < SLOTS) {
        watched[slot].start.store(0);
        watched[slot].damaged.store(false);
    }
}

bool is_damaged(int slot) { return slot >= 0 && slot < SLOTS && watched[slot].damaged.load(); }

} // namespace lg
