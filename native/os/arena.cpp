#include "os/arena.h"

#include <algorithm>
#include <new>
#include <sys/mman.h>

namespace lg {

namespace {

constexpr size_t PAGE = size_t(2) << 20;

size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

} // namespace

Arena::~Arena() {
    for (const Block& block : blocks_) {
        munmap(block.start, block.size);
    }
}

uint8_t* Arena::get(size_t bytes) {
    bytes = round_up(bytes, 64);
    if (bytes > left_) {
        const size_t size = round_up(std::max(block_, bytes), PAGE) + PAGE; // one more, to begin at a page's start
        // What is never touched takes no memory.
        void* start = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED) {
            throw std::bad_alloc();
        }
        blocks_.push_back({static_cast<uint8_t*>(start), size});
#ifdef MADV_HUGEPAGE
        madvise(start, size, MADV_HUGEPAGE); // a wish; refused where the kernel lacks them
#endif
        next_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<size_t>(start), PAGE));
        left_ = size - size_t(next_ - static_cast<uint8_t*>(start));
    }
    uint8_t* memory = next_;
    next_ += bytes;
    left_ -= bytes;
    return memory;
}

} // namespace lg
