// Memory for what is read from end to end for every token: in pages of 2 MB where the system has them, since walking the
// page table for small ones takes longer than reading them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lg {

class Arena {
  public:
    // Asks the system for `block` bytes at a time, or for what is wanted if that is more.
    explicit Arena(size_t block = size_t(64) << 20) : block_(block) {}
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // `bytes` bytes of zeros, aligned to 64, until the arena is destroyed. Throws std::bad_alloc.
    uint8_t* get(size_t bytes);

  private:
    struct Block {
        uint8_t* start;
        size_t size;
    };
    const size_t block_;
    std::vector<Block> blocks_;
    uint8_t* next_ = nullptr; // in the last block
    size_t left_ = 0;
};

} // namespace lg
