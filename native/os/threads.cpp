#include "os/threads.h"

#include <algorithm>

#include <pthread.h>

#ifdef __linux__
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace lg {

namespace {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Loops of one token follow each other within microseconds, so a worker looks for the next one for some tens of
// microseconds before it sleeps; longer would take the processor from others.
constexpr int SPINS = 2000;

// A fork copies the caller's thread alone: in the child, every pool that was made before has lost its threads.
std::atomic<unsigned> forks{0};

unsigned count_forks() {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { forks.fetch_add(1); }); });
    return forks.load();
}

} // namespace

int available_processors() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return std::max(1, CPU_COUNT(&set));
    }
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int n) : forks_(count_forks()) {
    const int total = n > 0 ? n : available_processors();
    shares_ = std::make_unique<Share[]>(size_t(total));
    try {
        for (int i = 1; i < total; ++i) {
            workers_.emplace_back([this, i] { work(i); });
        }
    } catch (...) {
        stop(); // those that did start: a joinable thread that is destroyed ends the process
        throw;
    }
}

bool ThreadPool::forked() const { return forks_ != forks.load(std::memory_order_relaxed); }

ThreadPool::~ThreadPool() {
    if (forked()) {
        for (std::thread& t : workers_) {
            t.detach(); // there is nothing to join
        }
        return;
    }
    stop();
}

void ThreadPool::stop() {
    stop_.store(true);
    round_.fetch_add(2);
    round_.notify_all();
    for (std::thread& t : workers_) {
        t.join();
    }
}

void ThreadPool::drain(int thread) {
    const int threads = size();
    for (int i = 0; i < threads; ++i) {
        Share& share = shares_[size_t((thread + i) % threads)];
        while (share.next.load(std::memory_order_relaxed) < share.end) {
            const int64_t chunk = share.next.fetch_add(1, std::memory_order_relaxed);
            if (chunk < share.end) {
                (*body_)(chunk, thread);
            }
        }
    }
}

void ThreadPool::work(int thread) {
    uint32_t seen = 0; // the loop that has no chunk left
    for (;;) {
        uint32_t now = round_.load(std::memory_order_acquire);
        for (int spin = 0; (now == seen || now % 2 == 0) && spin < SPINS; ++spin) {
            relax();
            now = round_.load(std::memory_order_acquire);
        }
        while (now == seen || now % 2 == 0) {
            if (stop_.load()) {
                return;
            }
            round_.wait(now, std::memory_order_acquire);
            now = round_.load(std::memory_order_acquire);
        }
        // First counted, then looking again: `run` first ends the loop, then looks at the count. One of the two sees the other.
        inside_.fetch_add(1);
        now = round_.load();
        if (now % 2) {
            seen = now;
            drain(thread);
        }
        if (inside_.fetch_sub(1) == 1) {
            inside_.notify_one();
        }
    }
}

void ThreadPool::run(int64_t chunks, const std::function<void(int64_t, int)>& body) {
    if (chunks <= 0) {
        return;
    }
    if (workers_.empty() || chunks == 1 || forked()) {
        for (int64_t i = 0; i < chunks; ++i) {
            body(i, 0);
        }
        return;
    }
    std::lock_guard<std::mutex> lock(one_loop_);
    body_ = &body;
    const int threads = size();
    for (int i = 0; i < threads; ++i) {
        Share& share = shares_[size_t(i)];
        share.next.store(first_of(i, chunks), std::memory_order_relaxed);
        share.end = first_of(i + 1, chunks);
    }
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    drain(0);
    // A worker that has not come by now will not: it may be waiting for a processor that another process keeps busy. Those
    // that have must leave before the next loop may change what they read.
    round_.fetch_add(1);
    int left = inside_.load();
    for (int spin = 0; left != 0 && spin < SPINS; ++spin) {
        relax();
        left = inside_.load();
    }
    while (left != 0) {
        inside_.wait(left);
        left = inside_.load();
    }
}

} // namespace lg
