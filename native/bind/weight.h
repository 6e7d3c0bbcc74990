// A weight whose rows are a Python array's.
#pragma once

#include "bind/arrays.h"
#include "engine/weight.h"

namespace lg {

class BoundWeight : public Weight {
  public:
    BoundWeight(Rows8 data, int type, int64_t cols, int64_t experts)
        : Weight(data.data(), int64_t(data.shape(0)), int64_t(data.shape(1)), type, cols, experts),
          data_(std::move(data)) {}

  private:
    Rows8 data_;
};

} // namespace lg
