// Memory for pages of one size: taken from the system in slabs, given back when no page of a slab is in use (but
// for one slab, which is kept for the next sequence).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/kv_pages.h"
#include "os/arena.h"

namespace lg {

class PageStore {
  public:
    explicit PageStore(int64_t page_bytes);
    PageStore(const PageStore&) = delete;
    PageStore& operator=(const PageStore&) = delete;

    // A page with one reference; its contents are undefined, all zeros at first. Throws std::bad_alloc.
    Page* take();
    // Drops one reference.
    void drop(Page* page) noexcept;

    int64_t page_bytes() const { return page_bytes_; }
    int64_t used() const { return used_; } // pages with references

  private:
    struct Slab {
        std::unique_ptr<Arena> memory; // null: given back
        std::unique_ptr<Page[]> pages;
        std::vector<Page*> free;
    };
    Slab& slab_with_room();

    const int64_t page_bytes_, slab_pages_;
    int64_t used_ = 0;
    std::vector<Slab> slabs_;
};

} // namespace lg
