// The parts of the native core that several threads share, for ThreadSanitizer: the pool, also under several callers, and
// the table of watched mappings. Ends with a line that says how much was done; a race ends it before.
#include "os/mappings.h"
#include "os/threads.h"

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#include <sys/resource.h>

namespace {

// Chunks write plain memory that the caller reads afterwards: without an order between them that is a race.
int64_t loops(lg::ThreadPool& pool, int rounds, uint32_t seed) {
    int64_t done = 0;
    std::vector<int64_t> sums(257);
    for (int round = 0; round < rounds; ++round) {
        seed = seed * 1664525u + 1013904223u;
        const int64_t chunks = seed >> 24; // 0 to 255
        std::fill(sums.begin(), sums.end(), 0);
        pool.run(chunks, [&](int64_t chunk, int thread) {
            if (thread < 0 || thread >= pool.size()) {
                std::abort();
            }
            sums[size_t(chunk)] += chunk + 1;
        });
        if (std::accumulate(sums.begin(), sums.end(), int64_t(0)) != chunks * (chunks + 1) / 2) {
            std::abort();
        }
        done += chunks;
    }
    return done;
}

int64_t pools() {
    std::atomic<int64_t> done{0};
    for (int size = 1; size <= 5; ++size) {
        lg::ThreadPool pool(size);
        std::vector<std::thread> callers;
        for (uint32_t caller = 0; caller < 3; ++caller) {
            callers.emplace_back([&, caller] { done += loops(pool, 300, caller + uint32_t(size) * 7u); });
        }
        for (std::thread& caller : callers) {
            caller.join();
        }
    }
    for (int made = 0; made < 200; ++made) { // ended while its threads may not have begun
        lg::ThreadPool pool(4);
        done += made % 2 ? loops(pool, 1, uint32_t(made)) : 0;
    }
    return done;
}

void watches() {
    static char memory[64][64];
    std::vector<std::thread> users;
    for (int user = 0; user < 4; ++user) {
        users.emplace_back([user] {
            for (int round = 0; round < 2000; ++round) {
                const int slot = lg::watch_mapping(memory[(user * 16 + round) % 64], sizeof memory[0]);
                if (slot < 0 || lg::is_damaged(slot)) {
                    std::abort();
                }
                lg::forget_mapping(slot);
            }
        });
    }
    for (std::thread& user : users) {
        user.join();
    }
}

} // namespace

int main() {
    lg::guard_mappings();
    const int64_t chunks = pools();
    watches();
    std::printf("%lld chunks, 8000 mappings: no race\n", static_cast<long long>(chunks));
}
