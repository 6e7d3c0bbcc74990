#include "engine/adapters.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/engine_run.h"
#include "simd/half.h"

namespace lg {

namespace {

constexpr int TOP = 15;        // numbers of half floats are below 2^16; what is rounded up stays finite
constexpr int MOST_SHIFT = 100; // so that units and their inverses are normal floats

// How `rank` ranks are kept; number(r, i) is i of n.
template <typename Number> Kept kept_as(Number number, int64_t rank, int64_t n) {
    Kept kept{true, std::vector<float>(size_t(rank))};
    for (int64_t r = 0; r < rank && kept.half; ++r) {
        float most = 0.0f;
        for (int64_t i = 0; i < n; ++i) {
            const float size = std::fabs(number(r, i));
            most = size > most && size <= std::numeric_limits<float>::max() ? size : most;
        }
        const int shift = most > 0.0f ? std::clamp(TOP - 1 - std::ilogb(most), -MOST_SHIFT, MOST_SHIFT) : 0;
        const float unit = std::ldexp(1.0f, shift);
        kept.unit[size_t(r)] = unit;
        kept.half = most * unit < 0x1p15f;
        for (int64_t i = 0; kept.half && i < n; ++i) {
            const float v = number(r, i);
            kept.half = v != v || float_from_half(half_from_float(v * unit)) / unit == v;
        }
    }
    if (!kept.half) {
        kept.unit.assign(size_t(rank), 1.0f);
    }
    return kept;
}

void keep_number(const Kept& kept, int64_t r, float v, uint8_t* to) {
    if (kept.half) {
        const uint16_t half = half_from_float(v * kept.unit[size_t(r)]);
        std::memcpy(to, &half, 2);
    } else {
        std::memcpy(to, &v, 4);
    }
}

} // namespace

PackedB::PackedB(const float* b, int64_t experts, int64_t rows, int64_t rank, Arena& arena)
    : kept_(kept_as([=](int64_t r, int64_t i) { return b[i * rank + r]; }, rank, experts * rows)) {
    const int64_t bytes = kept_.half ? 2 : 4;
    stride_ = (rows + 15) / 16 * 16 * rank * bytes;
    data_ = arena.get(size_t(experts * stride_));
    for (int64_t e = 0; e < experts; ++e) {
        for (int64_t row = 0; row < rows; ++row) {
            uint8_t* to = data_ + e * stride_ + (row / 16 * 16 * rank + row % 16) * bytes;
            for (int64_t r = 0; r < rank; ++r) {
                keep_number(kept_, r, b[(e * rows + row) * rank + r], to + r * 16 * bytes);
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
    lora.kept = kept_as([=](int64_t r, int64_t i) { return a[(i / cols * rank + r) * cols + i % cols]; }, rank,
                        experts * cols);
    const int64_t bytes = lora.kept.half ? 2 : 4;
    lora.a = arena_.get(size_t(experts * rank * lora.row_bytes()));
    for (int64_t row = 0; row < experts * rank; ++row) {
        for (int64_t i = row * cols; i < (row + 1) * cols; ++i) {
            keep_number(lora.kept, row % rank, a[i], lora.a + i * bytes);
        }
    }
    return lora;
}

void Adapter::layer(StepLora& lora, int layer, int64_t first, float scale, const float* b, int64_t rows, int64_t rank) {
    lora.layers.push_back({layer, first, rank, rows, scale, PackedB(b, lora.experts, rows, rank, arena_)});
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

namespace {

// B of one layer, and the factors of its rows of A: powers of two come off exactly.
void set_b(SetTerm& term, size_t i, const PackedB& b) {
    const LayerLora& layer = term.lora->layers[i];
    term.parts[i] = {b.of(0), b.stride(), layer.layer, int(layer.first), int(layer.rank), b.half()};
    const float gamma = float(double(layer.scale) * term.strength);
    for (int64_t r = 0; r < layer.rank; ++r) {
        const double units = double(term.lora->kept.unit[size_t(layer.first + r)]) * b.unit(r);
        term.gamma[size_t(layer.first + r)] = float(gamma / units);
    }
}

} // namespace

AdapterSet::AdapterSet(const std::vector<std::pair<const Adapter*, double>>& members) {
    for (size_t member = 0; member < members.size(); ++member) {
        const auto& [adapter, strength] = members[member];
        for (const auto& [step, lora] : adapter->linears()) {
            SetTerm term{&lora, member, strength, std::vector<float>(size_t(lora.rank)),
                         std::vector<SetPart>(lora.layers.size())};
            for (size_t i = 0; i < lora.layers.size(); ++i) {
                set_b(term, i, lora.layers[i].b);
            }
            linear(step).terms.push_back(std::move(term));
        }
        for (const auto& [step, lora] : adapter->embeds()) {
            embeds_[step].push_back({&lora, float(double(lora.scale) * strength)});
        }
    }
}

void AdapterSet::rescale(int step, size_t member, size_t lora_layer, const float* b, int64_t experts, int64_t rows,
                         int64_t rank) {
    for (SetTerm& term : linear(step).terms) {
        if (term.member == member && lora_layer < term.parts.size()) {
            const LayerLora& layer = term.lora->layers[lora_layer];
            require(layer.rank == rank && layer.rows == rows && term.lora->experts == experts, "adapter: rescaled B");
            own_.push_back(std::make_unique<PackedB>(b, experts, rows, rank, arena_));
            set_b(term, lora_layer, *own_.back());
            return;
        }
    }
    require(false, "adapter: no such term to rescale");
}

void AdapterSet::dora(int step, size_t layer, std::vector<float> factors) {
    std::vector<std::vector<float>>& dora = linear(step).dora;
    if (dora.size() <= layer) {
        dora.resize(layer + 1);
    }
    dora[layer] = std::move(factors);
}

SetStep& AdapterSet::linear(int step) {
    require(step >= 0, "adapter: no such step");
    if (by_step_.size() <= size_t(step)) {
        by_step_.resize(size_t(step) + 1);
    }
    SetStep& own = linears_[step];
    by_step_[size_t(step)] = &own;
    return own;
}

const SetStep* AdapterSet::linear_at(int step) const {
    return step >= 0 && size_t(step) < by_step_.size() ? by_step_[size_t(step)] : nullptr;
}

const std::vector<SetEmbed>* AdapterSet::embed_at(int step) const {
    const auto found = embeds_.find(step);
    return found == embeds_.end() ? nullptr : &found->second;
}

} // namespace lg
