// Layers that keep a state of fixed size for each sequence: short convolutions and the scans of linear attention.
#include "engine/program.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lg {

namespace {

// Rows of one sequence in a pass, and its state before and after them; null before: zeros.
struct Stretch {
    int64_t row, count;
    const float* before;
    float* after;
};

std::vector<Stretch> stretches_of(Pass& pass, int state) {
    std::vector<Stretch> found;
    for (int64_t row = 0; row < int64_t(pass.places.size()); ++row) {
        const auto [sequence, position] = pass.places[size_t(row)];
        if (row > 0 && sequence == pass.places[size_t(row - 1)].sequence) {
            ++found.back().count;
            continue;
        }
        found.push_back({row, 1, pass.states.state_before(sequence, position, state),
                         pass.states.state_after(sequence, state)});
    }
    return found;
}

class ShortConvStep : public Step {
  public:
    ShortConvStep(Value x, Value y, int state, std::vector<float> weight, std::vector<float> bias, int width)
        : Step(ALL), x_(x), y_(y), state_(state), width_(width), weight_(weight.size()), bias_(std::move(bias)),
          zeros_(size_t(x.width), 0.0f) {
        const int64_t channels = x.width;
        require(x.space == ALL && y.space == ALL && y.width == channels, "short_conv: values do not fit");
        require(width > 0 && int64_t(weight.size()) == channels * width, "short_conv: the weight's size");
        require(bias_.empty() || int64_t(bias_.size()) == channels, "short_conv: the bias's size");
        for (int64_t c = 0; c < channels; ++c) {
            for (int j = 0; j < width; ++j) {
                weight_[size_t(j * channels + c)] = weight[size_t(c * width + j)];
            }
        }
    }
    void run(Pass& pass) const override {
        const int64_t channels = x_.width, kept = width_ - 1;
        const float* x = pass.floats(x_);
        float* y = pass.floats(y_);
        const std::vector<Stretch> stretches = stretches_of(pass, state_);
        std::vector<const Stretch*> stretch_of;
        for (const Stretch& own : stretches) {
            stretch_of.insert(stretch_of.end(), size_t(own.count), &own);
        }
        // Row t of a stretch, or before its first what was kept, oldest first.
        const auto row_at = [&](const Stretch& own, int64_t t) {
            return t >= 0 ? x + (own.row + t) * channels : own.before ? own.before + (kept + t) * channels : zeros_.data();
        };
        over_rows(pass.threads, pass.rows[ALL], channels * width_, [&](int64_t row) {
            const Stretch& own = *stretch_of[size_t(row)];
            const float* rows[MOST_WIDTH];
            for (int64_t j = 0; j < width_; ++j) {
                rows[j] = row_at(own, row - own.row - kept + j);
            }
            kernels().engine.short_conv(rows, weight_.data(), bias_.empty() ? nullptr : bias_.data(), y + row * channels,
                                        channels, width_);
        });
        for (const Stretch& own : stretches) {
            for (int64_t j = 0; j < kept; ++j) { // oldest first: a row is read before its place is written to
                std::copy_n(row_at(own, own.count - kept + j), channels, own.after + j * channels);
            }
        }
    }
    static constexpr int MOST_WIDTH = 64;

  private:
    const Value x_, y_;
    const int state_, width_;
    std::vector<float> weight_; // [width][channels]
    const std::vector<float> bias_, zeros_;
};

class ScanStep : public Step {
  public:
    ScanStep(ScanValues values, ScanShape shape, int state, std::vector<float> decay, std::vector<float> skip)
        : Step(ALL), v_(values), shape_(shape), state_(state), decay_(std::move(decay)), skip_(std::move(skip)) {
        for (const Value* value : {&v_.q, &v_.k, &v_.v, &v_.rate, &v_.y}) {
            require(value->space == ALL, "scan: works on all rows");
        }
        const ScanShape& s = shape_;
        require(s.heads > 0 && s.key_heads > 0 && s.heads % s.key_heads == 0 && s.key_dim > 0 && s.value_dim > 0,
                "scan: heads");
        require(v_.q.width == s.key_heads * s.key_dim && v_.k.width == v_.q.width, "scan: widths of queries and keys");
        require(v_.v.width == s.heads * s.value_dim && v_.y.width == v_.v.width, "scan: widths of the values");
        require(v_.rate.width == s.heads && (!v_.has_beta || v_.beta.width == s.heads), "scan: numbers of the heads");
        require(int64_t(decay_.size()) == s.heads && (skip_.empty() || int64_t(skip_.size()) == s.heads),
                "scan: weights of the heads");
    }
    void run(Pass& pass) const override {
        const ScanShape& shape = shape_;
        const std::vector<Stretch> stretches = stretches_of(pass, state_);
        const int64_t blocks = scan_blocks(shape.value_dim), tasks = (blocks + BLOCKS - 1) / BLOCKS;
        const auto compute = [&](int64_t number, int) {
            const Stretch& own = stretches[size_t(number / (shape.heads * tasks))];
            const int64_t head = number / tasks % shape.heads, first = number % tasks * BLOCKS;
            const int64_t key_head = shape.tiled ? head % shape.key_heads : head / (shape.heads / shape.key_heads);
            Scan s;
            s.tokens = own.count;
            s.key_dim = shape.key_dim;
            s.value_dim = shape.value_dim;
            s.q_stride = s.k_stride = v_.q.width;
            s.v_stride = s.y_stride = v_.v.width;
            s.gate_stride = shape.heads;
            s.q = pass.floats(v_.q) + own.row * s.q_stride + key_head * shape.key_dim;
            s.k = pass.floats(v_.k) + own.row * s.k_stride + key_head * shape.key_dim;
            s.v = pass.floats(v_.v) + own.row * s.v_stride + head * shape.value_dim;
            s.y = pass.floats(v_.y) + own.row * s.y_stride + head * shape.value_dim;
            s.rate = pass.floats(v_.rate) + own.row * s.gate_stride + head;
            s.beta = v_.has_beta ? pass.floats(v_.beta) + own.row * s.gate_stride + head : nullptr;
            s.decay = decay_[size_t(head)];
            s.skip = skip_.empty() ? 0.0f : skip_[size_t(head)];
            const int64_t offset = head * blocks * SCAN_COLUMNS * shape.key_dim;
            kernels().engine.scan(s, own.before ? own.before + offset : nullptr, own.after + offset, first,
                                  std::min(blocks, first + BLOCKS));
        };
        const int64_t chunks = int64_t(stretches.size()) * shape.heads * tasks;
        if (pass.rows[ALL] * shape.heads * shape.key_dim * shape.value_dim < ALONE) {
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                compute(chunk, 0);
            }
        } else {
            pass.threads.run(chunks, compute);
        }
    }

  private:
    static constexpr int64_t BLOCKS = 2;      // of columns that a task takes: 16 KB of state for a key of 128
    static constexpr int64_t ALONE = 1 << 16; // less work is done by the calling thread: waking others takes longer

    const ScanValues v_;
    const ScanShape shape_;
    const int state_;
    const std::vector<float> decay_, skip_;
};

class TimeStep : public Step {
  public:
    TimeStep(Value x, Value y, std::vector<float> bias, float low, float high)
        : Step(x.space), x_(x), y_(y), bias_(std::move(bias)), low_(low), high_(high) {
        require(x.width == y.width && x.space == y.space && int64_t(bias_.size()) == x.width,
                "time_step: values of different widths");
    }
    void run(Pass& pass) const override {
        const int64_t n = x_.width;
        const float* from = pass.floats(x_);
        float* to = pass.floats(y_);
        over_rows(pass.threads, pass.rows[x_.space], n * 16, [&](int64_t row) {
            float* y = to + row * n;
            kernels().engine.add(from + row * n, bias_.data(), y, n);
            kernels().engine.softplus(y, y, n);
            kernels().engine.clamp(y, y, n, low_, high_);
        });
    }

  private:
    const Value x_, y_;
    const std::vector<float> bias_;
    const float low_, high_;
};

} // namespace

int64_t scan_floats(const ScanShape& shape) {
    return shape.heads * scan_blocks(shape.value_dim) * SCAN_COLUMNS * shape.key_dim;
}

std::unique_ptr<Step> short_conv_step(Value x, Value y, int state, std::vector<float> weight, std::vector<float> bias,
                                      int width) {
    require(width <= ShortConvStep::MOST_WIDTH, "short_conv: the window is too wide");
    return std::make_unique<ShortConvStep>(x, y, state, std::move(weight), std::move(bias), width);
}

std::unique_ptr<Step> scan_step(ScanValues values, ScanShape shape, int state, std::vector<float> decay,
                                std::vector<float> skip) {
    return std::make_unique<ScanStep>(values, shape, state, std::move(decay), std::move(skip));
}

std::unique_ptr<Step> time_step(Value x, Value y, std::vector<float> bias, float low, float high) {
    return std::make_unique<TimeStep>(x, y, std::move(bias), low, high);
}

} // namespace lg
