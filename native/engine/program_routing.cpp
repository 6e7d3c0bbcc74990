// Which experts a token goes to, and what becomes of what they give.
#include "engine/program.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace lg {

namespace {

class AllExpertsStep : public Step {
  public:
    explicit AllExpertsStep(Value ids) : Step(ids.space), ids_(ids) { require(ids.width > 0, "all_experts: width"); }
    void run(Pass& pass) const override {
        for (int64_t row = 0; row < pass.rows[space]; ++row) {
            int32_t* ids = pass.ints(ids_) + row * ids_.width;
            std::iota(ids, ids + ids_.width, 0);
        }
    }

  private:
    const Value ids_;
};

class TopKStep : public Step {
  public:
    TopKStep(Value logits, Value ids) : Step(logits.space), logits_(logits), ids_(ids) {
        require(ids.space == logits.space && ids.width > 0 && ids.width <= logits.width, "top_k: widths");
    }
    void run(Pass& pass) const override {
        const int64_t experts = logits_.width, used = ids_.width;
        const float* logits = pass.floats(logits_);
        int32_t* ids = pass.ints(ids_);
        std::vector<int32_t> order(size_t(experts), 0);
        for (int64_t row = 0; row < pass.rows[space]; ++row) {
            const float* own = logits + row * experts;
            std::iota(order.begin(), order.end(), 0);
            // Largest first, ties to the lower index; what is no number comes last.
            std::partial_sort(order.begin(), order.begin() + used, order.end(), [own](int32_t a, int32_t b) {
                const bool first = !std::isnan(own[a]), second = !std::isnan(own[b]);
                if (first != second) {
                    return first;
                }
                return first && own[a] != own[b] ? own[a] > own[b] : a < b;
            });
            std::copy_n(order.begin(), used, ids + row * used);
        }
    }

  private:
    const Value logits_, ids_;
};

class RouteStep : public Step {
  public:
    RouteStep(Value logits, Value ids, Value weights, Gates gates, bool normalize, float scale, float margin)
        : Step(logits.space), logits_(logits), ids_(ids), weights_(weights), gates_(gates), normalize_(normalize),
          scale_(scale), margin_(margin) {
        require(ids.width == weights.width && ids.space == space && weights.space == space, "route: widths");
    }
    void run(Pass& pass) const override {
        const int64_t experts = logits_.width, used = ids_.width;
        for (int64_t row = 0; row < pass.rows[space]; ++row) {
            const float* logits = pass.floats(logits_) + row * experts;
            const int32_t* ids = pass.ints(ids_) + row * used;
            float* weights = pass.floats(weights_) + row * used;
            const float largest = *std::max_element(logits, logits + experts);
            float total = 0.0f;
            for (int64_t e = 0; gates_ == Gates::SOFTMAX && e < experts; ++e) {
                total += std::exp(logits[e] - largest);
            }
            float chosen = 0.0f;
            for (int64_t j = 0; j < used; ++j) {
                require(ids[j] >= 0 && ids[j] < experts, "route: no such expert");
                const float x = logits[ids[j]];
                weights[j] = gates_ == Gates::SPARSE_MIXER ? 1.0f / near(logits, ids, j)
                             : gates_ == Gates::SOFTMAX    ? std::exp(x - largest) / total
                                                           : 1.0f / (1.0f + std::exp(-x));
                chosen += weights[j];
            }
            for (int64_t j = 0; j < used; ++j) {
                weights[j] = (normalize_ ? weights[j] / chosen : weights[j]) * scale_;
            }
        }
    }

  private:
    // The sum of e^(l - m) over experts that were not chosen before number j and are near its logit m.
    float near(const float* logits, const int32_t* ids, int64_t j) const {
        const float own = logits[ids[j]];
        float total = 0.0f;
        for (int64_t e = 0; e < logits_.width; ++e) {
            const bool before = std::find(ids, ids + j, int32_t(e)) != ids + j;
            const bool far = (own - logits[e]) / std::max(std::fabs(logits[e]), own) > margin_; // 0 / 0 is near
            total += before || far ? 0.0f : std::exp(logits[e] - own);
        }
        return total;
    }

    const Value logits_, ids_, weights_;
    const Gates gates_;
    const bool normalize_;
    const float scale_, margin_;
};

class ExpertsSumStep : public Step {
  public:
    ExpertsSumStep(Value y, Value weights, Value sum) : Step(y.space), y_(y), weights_(weights), sum_(sum) {
        require(y.width == weights.width * sum.width && weights.space == space && sum.space == space,
                "experts_sum: widths");
    }
    void run(Pass& pass) const override {
        const int64_t width = sum_.width, used = weights_.width;
        const float *y = pass.floats(y_), *weights = pass.floats(weights_);
        float* sum = pass.floats(sum_);
        over_rows(pass.threads, pass.rows[space], width * used, [&](int64_t row) {
            float* to = sum + row * width;
            std::fill_n(to, width, 0.0f);
            for (int64_t j = 0; j < used; ++j) {
                const float* from = y + (row * used + j) * width;
                const float weight = weights[row * used + j];
                for (int64_t i = 0; i < width; ++i) {
                    to[i] += weight * from[i];
                }
            }
        });
    }

  private:
    const Value y_, weights_, sum_;
};

} // namespace

std::unique_ptr<Step> all_experts_step(Value ids) { return std::make_unique<AllExpertsStep>(ids); }
std::unique_ptr<Step> top_k_step(Value logits, Value ids) { return std::make_unique<TopKStep>(logits, ids); }
std::unique_ptr<Step> route_step(Value logits, Value ids, Value weights, Gates gates, bool normalize, float scale,
                                 float margin) {
    return std::make_unique<RouteStep>(logits, ids, weights, gates, normalize, scale, margin);
}
std::unique_ptr<Step> experts_sum_step(Value y, Value weights, Value sum) {
    return std::make_unique<ExpertsSumStep>(y, weights, sum);
}

} // namespace lg
