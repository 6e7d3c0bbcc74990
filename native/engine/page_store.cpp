#include "engine/page_store.h"

#include <algorithm>

namespace lg {

namespace {
constexpr int64_t SLAB = int64_t(8) << 20;
}

PageStore::PageStore(int64_t page_bytes)
    : page_bytes_(page_bytes), slab_pages_(std::max<int64_t>(1, SLAB / page_bytes)) {}

PageStore::Slab& PageStore::slab_with_room() {
    Slab* empty = nullptr;
    for (Slab& slab : slabs_) {
        if (!slab.memory) {
            empty = &slab;
        } else if (!slab.free.empty()) {
            return slab;
        }
    }
    Slab fresh;
    fresh.memory = std::make_unique<Arena>(size_t(slab_pages_ * page_bytes_));
    fresh.pages = std::make_unique<Page[]>(size_t(slab_pages_));
    uint8_t* data = fresh.memory->get(size_t(slab_pages_ * page_bytes_));
    for (int64_t i = slab_pages_ - 1; i >= 0; --i) {
        fresh.pages[size_t(i)].data = data + i * page_bytes_;
        fresh.free.push_back(&fresh.pages[size_t(i)]);
    }
    if (!empty) {
        empty = &slabs_.emplace_back();
    }
    *empty = std::move(fresh);
    const int32_t number = int32_t(empty - slabs_.data());
    for (int64_t i = 0; i < slab_pages_; ++i) {
        empty->pages[size_t(i)].slab = number;
    }
    return *empty;
}

Page* PageStore::take() {
    Slab& slab = slab_with_room();
    Page* page = slab.free.back();
    slab.free.pop_back();
    page->references = 1;
    ++used_;
    return page;
}

void PageStore::drop(Page* page) noexcept {
    if (--page->references > 0) {
        return;
    }
    --used_;
    Slab& slab = slabs_[size_t(page->slab)];
    slab.free.push_back(page); // there was room for all
    // One slab is kept, so that a single sequence that comes and goes need not ask the system each time.
    const auto unused = [&](const Slab& s) { return s.memory && int64_t(s.free.size()) == slab_pages_; };
    if (unused(slab) && std::count_if(slabs_.begin(), slabs_.end(), unused) > 1) {
        slab = Slab{};
    }
}

} // namespace lg
