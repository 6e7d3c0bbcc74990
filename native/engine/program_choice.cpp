// Which experts a token goes to where their gates' values are corrected by a bias, or groups of experts compete first.
#include "engine/program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace lg {

namespace {

constexpr float NEVER = -std::numeric_limits<float>::infinity();

class ChoiceStep : public Step {
  public:
    ChoiceStep(Value logits, Value ids, Choice choice)
        : Step(logits.space), logits_(logits), ids_(ids), choice_(std::move(choice)) {
        require(ids.space == logits.space && ids.width > 0 && ids.width <= logits.width, "top_k: widths");
        require(choice_.bias.empty() || int64_t(choice_.bias.size()) == logits.width, "top_k: a bias for each expert");
        require(choice_.groups > 0 && logits.width % choice_.groups == 0, "top_k: groups of one size");
        require(choice_.groups_used > 0 && choice_.groups_used <= choice_.groups, "top_k: groups used");
        require(choice_.best > 0 && choice_.best <= logits.width / choice_.groups, "top_k: best of a group");
    }
    void run(Pass& pass) const override {
        std::vector<float> scores(size_t(logits_.width), 0.0f);
        for (int64_t row = 0; row < pass.rows[space]; ++row) {
            score(pass.floats(logits_) + row * logits_.width, scores);
            leave_groups_out(scores);
            best_of(scores, ids_.width, pass.ints(ids_) + row * ids_.width);
        }
    }

  private:
    void score(const float* logits, std::vector<float>& scores) const {
        const size_t experts = scores.size();
        std::copy_n(logits, experts, scores.begin());
        if (choice_.gating == Gating::SOFTMAX) {
            const float largest = *std::max_element(scores.begin(), scores.end());
            float total = 0.0f;
            for (float& score : scores) {
                score = std::exp(score - largest);
                total += score;
            }
            for (float& score : scores) {
                score /= total;
            }
        } else if (choice_.gating == Gating::SIGMOID) {
            for (float& score : scores) {
                score = 1.0f / (1.0f + std::exp(-score));
            }
        }
        for (size_t e = 0; e < choice_.bias.size(); ++e) {
            scores[e] += choice_.bias[e];
        }
    }

    // A group is as good as the sum of its `best` experts' scores.
    void leave_groups_out(std::vector<float>& scores) const {
        if (choice_.groups == 1) {
            return;
        }
        const size_t groups = size_t(choice_.groups), size = scores.size() / groups;
        std::vector<float> sums(groups, 0.0f);
        std::vector<int32_t> members(size_t(choice_.best), 0), kept(size_t(choice_.groups_used), 0);
        for (size_t g = 0; g < groups; ++g) {
            const std::vector<float> own(scores.begin() + int64_t(g * size), scores.begin() + int64_t((g + 1) * size));
            best_of(own, choice_.best, members.data());
            for (int32_t member : members) {
                sums[g] += own[size_t(member)];
            }
        }
        best_of(sums, choice_.groups_used, kept.data());
        for (size_t g = 0; g < groups; ++g) {
            if (std::find(kept.begin(), kept.end(), int32_t(g)) == kept.end()) {
                std::fill_n(scores.begin() + int64_t(g * size), size, NEVER);
            }
        }
    }

    // Largest first, ties to the lower index; what is no number comes last.
    static void best_of(const std::vector<float>& scores, int64_t count, int32_t* ids) {
        std::vector<int32_t> order(scores.size(), 0);
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + count, order.end(), [&scores](int32_t a, int32_t b) {
            const float one = scores[size_t(a)], two = scores[size_t(b)];
            if (std::isnan(one) != std::isnan(two)) {
                return !std::isnan(one);
            }
            return !std::isnan(one) && one != two ? one > two : a < b;
        });
        std::copy_n(order.begin(), count, ids);
    }

    const Value logits_, ids_;
    const Choice choice_;
};

} // namespace

std::unique_ptr<Step> choice_step(Value logits, Value ids, Choice choice) {
    return std::make_unique<ChoiceStep>(logits, ids, std::move(choice));
}

} // namespace lg
