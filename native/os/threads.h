// A persistent pool of threads that share out the chunks of one loop at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace lg {

class ThreadPool {
  public:
    // `n` threads in all, the calling one included; 0 asks for as many as the process may run on. Throws
    // std::system_error if the system will not start so many; none is left then.
    explicit ThreadPool(int n);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int size() const { return int(workers_.size()) + 1; }

    // Which thread begins with the range that a chunk of a loop is in, and the first chunk of a thread's range.
    int64_t share_of(int64_t chunk, int64_t chunks) const { return ((chunk + 1) * size() - 1) / chunks; }
    int64_t first_of(int64_t share, int64_t chunks) const { return chunks * share / size(); }

    // Calls body(chunk, thread) once for each chunk in [0, chunks), in any order, and returns when all are done. Each thread
    // begins with a range of its own, from its first chunk on, and then takes what others have not begun. What a
    // chunk computes must not depend on the thread that runs it, so that results do not depend on the pool's size. Threads
    // that the system keeps from running are not waited for, unless they hold a chunk.
    // `body` must not throw. In a forked child, whose copy of the pool has no threads, the caller does all the work.
    void run(int64_t chunks, const std::function<void(int64_t chunk, int thread)>& body);

  private:
    void work(int thread);
    void drain(int thread);
    void stop();

    bool forked() const;

    // The chunks that one thread begins with.
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    std::vector<std::thread> workers_;
    std::unique_ptr<Share[]> shares_; // of each thread
    const unsigned forks_; // how often this process had been forked when the threads were started
    std::mutex one_loop_; // callers from several Python threads take turns
    const std::function<void(int64_t, int)>* body_ = nullptr;
    alignas(64) std::atomic<uint32_t> round_{0}; // odd while a loop may be joined; a new value wakes the workers
    alignas(64) std::atomic<int> inside_{0};     // workers that have joined the loop, or are about to look whether they may
    std::atomic<bool> stop_{false};
};

// How many processors this process may run on.
int available_processors();

} // namespace lg
