// Memory that a thread keeps from one loop to the next.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace lg {

template <typename T> class Scratch {
  public:
    // At least n elements, aligned to 64 bytes, contents undefined.
    T* get(int64_t n) {
        if (n > size_) {
            memory_.reset(static_cast<T*>(::operator new(size_t(n) * sizeof(T), std::align_val_t(64))));
            size_ = n;
        }
        return memory_.get();
    }

  private:
    struct Delete {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Delete> memory_;
    int64_t size_ = 0;
};

} // namespace lg
