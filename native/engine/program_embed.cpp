// Where rows begin and end: embeddings with their adapters, hidden rows from the caller, the rows whose logits are wanted.
#include "engine/program.h"

#include <algorithm>

namespace lg {

namespace {

// Rows of the weight by token or position, scaled, with what adapters add, times an architecture's own scale.
class EmbedStep : public Step {
  public:
    EmbedStep(int number, const Weight* weight, Value y, bool by_position, float scale, float arch_scale)
        : Step(y.space), number_(number), weight_(*weight), y_(y), by_position_(by_position), scale_(scale),
          arch_scale_(arch_scale) {
        require(y.space == ALL && y.width == weight->cols(), "embed: y does not fit the weight");
    }

    void check(const AdapterSet& set) const override {
        const std::vector<SetEmbed>* own = set.embed_at(number_);
        for (size_t i = 0; own && i < own->size(); ++i) {
            const EmbedLora& lora = *(*own)[i].lora;
            require(lora.cols == y_.width && lora.vocabulary == weight_.n_rows(), "adapter: does not fit the embedding");
        }
    }

    void run(Pass& pass) const override {
        const int64_t rows = pass.rows[ALL], width = y_.width;
        const int32_t* ids = by_position_ ? pass.batch.positions : pass.batch.tokens;
        for (int64_t row = 0; row < rows; ++row) {
            require(ids[row] >= 0 && ids[row] < weight_.n_rows(), "embed: no such row");
        }
        float* y = pass.floats(y_);
        over_rows(pass.threads, rows, width, [&](int64_t row) {
            weight_.row(ids[row], y + row * width);
            if (scale_ != 1.0f) {
                times(y + row * width, scale_);
            }
        });
        for (const Segment& segment : pass.segments) {
            const std::vector<SetEmbed>* set = segment.set->embed_at(number_);
            if (set) {
                const std::vector<int32_t>& own = segment.rows[ALL];
                over_rows(pass.threads, int64_t(own.size()), width, [&](int64_t i) {
                    const int64_t row = own[size_t(i)];
                    for (const SetEmbed& lora : *set) {
                        add(lora, ids[row], y + row * width);
                    }
                });
            }
        }
        if (arch_scale_ != 1.0f) {
            over_rows(pass.threads, rows, width, [&](int64_t row) { times(y + row * width, arch_scale_); });
        }
    }

  private:
    void times(float* y, float factor) const {
        for (int64_t i = 0; i < y_.width; ++i) {
            y[i] *= factor;
        }
    }
    static void add(const SetEmbed& set, int32_t id, float* y) {
        const EmbedLora& lora = *set.lora;
        const float* b = lora.b.data() + id * lora.rank;
        for (int64_t i = 0; i < lora.cols; ++i) {
            float sum = 0.0f;
            for (int64_t r = 0; r < lora.rank; ++r) {
                sum += b[r] * lora.a[size_t(r * lora.cols + i)];
            }
            y[i] += set.gamma * sum;
        }
    }

    const int number_;
    const Weight& weight_;
    const Value y_;
    const bool by_position_;
    const float scale_, arch_scale_;
};

class HiddenStep : public Step {
  public:
    explicit HiddenStep(Value y) : Step(y.space), y_(y) {}
    void run(Pass& pass) const override {
        require(pass.batch.hidden && pass.batch.hidden_width == y_.width, "hidden: rows of another width");
        std::copy_n(pass.batch.hidden, pass.rows[ALL] * y_.width, pass.floats(y_));
    }

  private:
    const Value y_;
};

class LastStep : public Step {
  public:
    LastStep(Value x, Value y) : Step(WANTED), x_(x), y_(y) {
        require(x.space == ALL && y.space == WANTED && x.width == y.width, "last: values do not fit");
    }
    void run(Pass& pass) const override {
        const float* x = pass.floats(x_);
        float* y = pass.floats(y_);
        for (int32_t row : pass.wanted) {
            y = std::copy_n(x + row * x_.width, x_.width, y);
        }
    }

  private:
    const Value x_, y_;
};

} // namespace

std::unique_ptr<Step> embed_step(int step, const Weight* weight, Value y, bool by_position, float scale,
                                 float arch_scale) {
    return std::make_unique<EmbedStep>(step, weight, y, by_position, scale, arch_scale);
}
std::unique_ptr<Step> hidden_step(Value y) { return std::make_unique<HiddenStep>(y); }
std::unique_ptr<Step> last_step(Value x, Value y) { return std::make_unique<LastStep>(x, y); }

} // namespace lg
