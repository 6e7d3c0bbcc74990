#include "engine/adapters.h"

#include <algorithm>

#include "engine/engine_run.h"

namespace lg {

PackedB::PackedB(const float* b, int64_t experts, int64_t rows, int64_t rank) {
    stride_ = (rows + 15) / 16 * 16 * rank;
    data_ = memory_.get(std::max<int64_t>(1, experts * stride_));
    std::fill_n(data_, experts * stride_, 0.0f);
    for (int64_t e = 0; e < experts; ++e) {
        for (int64_t row = 0; row < rows; ++row) {
            float* to = data_ + e * stride_ + row / 16 * 16 * rank + row % 16;
            for (int64_t r = 0; r < rank; ++r) {
                to[r * 16] = b[(e * rows + row) * rank + r];
            }
        }
    }
}

StepLora& Adapter::linear(int step, const float* a, int64_t experts, int64_t rank, int64_t cols) {
    require(experts > 0 && rank > 0 && cols > 0 && !linears_.count(step), "adapter: a step's A");
    StepLora& lora = linears_[step];
    lora.experts = experts;
    lora.rank = rank;
    lora.cols = cols;
    float* data = lora.a.get(experts * rank * cols);
    std::copy_n(a, experts * rank * cols, data);
    lora.a_data = data;
    return lora;
}

void Adapter::embed(int step, EmbedLora lora) { embeds_[step] = std::move(lora); }

const StepLora* Adapter::linear_at(int step) const {
    const auto found = linears_.find(step);
    return found == linears_.end() ? nullptr : &found->second;
}

const EmbedLora* Adapter::embed_at(int step) const {
    const auto found = embeds_.find(step);
    return found == embeds_.end() ? nullptr : &found->second;
}

AdapterSet::AdapterSet(const std::vector<std::pair<const Adapter*, double>>& members) {
    for (size_t member = 0; member < members.size(); ++member) {
        const auto& [adapter, strength] = members[member];
        for (const auto& [step, lora] : adapter->linears()) {
            SetTerm term{&lora, member, std::vector<float>(size_t(lora.rank)), {}};
            for (const LayerLora& layer : lora.layers) {
                const float gamma = float(double(layer.scale) * strength);
                std::fill_n(term.gamma.begin() + layer.first, layer.rank, gamma);
                term.b.push_back(&layer.b);
            }
            linears_[step].terms.push_back(std::move(term));
        }
        for (const auto& [step, lora] : adapter->embeds()) {
            embeds_[step].push_back({&lora, float(double(lora.scale) * strength)});
        }
    }
}

void AdapterSet::rescale(int step, size_t member, size_t lora_layer, const float* b, int64_t experts, int64_t rows,
                         int64_t rank) {
    for (SetTerm& term : linears_[step].terms) {
        if (term.member == member && lora_layer < term.b.size()) {
            const LayerLora& layer = term.lora->layers[lora_layer];
            require(layer.rank == rank && layer.rows == rows && term.lora->experts == experts, "adapter: rescaled B");
            own_.push_back(std::make_unique<PackedB>(b, experts, rows, rank));
            term.b[lora_layer] = own_.back().get();
            return;
        }
    }
    require(false, "adapter: no such term to rescale");
}

void AdapterSet::dora(int step, size_t layer, std::vector<float> factors) {
    std::vector<std::vector<float>>& dora = linears_[step].dora;
    if (dora.size() <= layer) {
        dora.resize(layer + 1);
    }
    dora[layer] = std::move(factors);
}

const SetStep* AdapterSet::linear_at(int step) const {
    const auto found = linears_.find(step);
    return found == linears_.end() ? nullptr : &found->second;
}

const std::vector<SetEmbed>* AdapterSet::embed_at(int step) const {
    const auto found = embeds_.find(step);
    return found == embeds_.end() ? nullptr : &found->second;
}

} // namespace lg
