// What grows with a token's position.
#include "engine/program.h"

#include <cmath>

namespace lg {

namespace {

// x * (1 + slope * ln(1 + floor((position + offset) / length)))
class PositionScaleStep : public Step {
  public:
    PositionScaleStep(Value x, Value y, double length, double offset, double slope)
        : Step(x.space), x_(x), y_(y), length_(length), offset_(offset), slope_(slope) {
        require(x.space == ALL && y.space == ALL && x.width == y.width, "position_scale: values do not fit");
        require(length > 0, "position_scale: length");
    }
    void run(Pass& pass) const override {
        const int64_t width = x_.width;
        const float* x = pass.floats(x_);
        float* y = pass.floats(y_);
        over_rows(pass.threads, pass.rows[ALL], width, [&](int64_t row) {
            const double steps = std::floor((double(pass.batch.positions[row]) + offset_) / length_);
            const float factor = float(1.0 + slope_ * std::log1p(steps));
            for (int64_t i = row * width; i < (row + 1) * width; ++i) {
                y[i] = x[i] * factor;
            }
        });
    }

  private:
    const Value x_, y_;
    const double length_, offset_, slope_;
};

} // namespace

std::unique_ptr<Step> position_scale_step(Value x, Value y, double length, double offset, double slope) {
    return std::make_unique<PositionScaleStep>(x, y, length, offset, slope);
}

} // namespace lg
