#include "engine/adapters.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "engine/engine_run.h"
#include "kernels.h"
#include "simd/half.h"

namespace lg {

namespace {

constexpr size_t LINE_BYTES = 64; // of memory
constexpr int TOP = 15;        // numbers of half floats are below 2^16; what is rounded up stays finite
constexpr int MOST_SHIFT = 100; // so that units and their inverses are normal floats
constexpr int LEAST_Q8_SHIFT = -113; // brings the largest float below 2^15
constexpr uint16_t NOT_A_NUMBER = 0x7E00; // as a half float
constexpr float MAGIC = 12582912.0f; // added and taken off: the nearest integer, halves to even

// What brings a rank's largest number, `most`, between 2^14 and 2^15; 1 for a rank of zeros.
float unit_of(float most, int least, int largest) {
    return most > 0.0f ? std::ldexp(1.0f, std::clamp(TOP - 1 - std::ilogb(most), least, largest)) : 1.0f;
}

// The largest of the n numbers that are finite; number(i) is one.
template <typename Number> float largest(Number number, int64_t n) {
    float most = 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        const float size = std::fabs(number(i));
        most = size > most && size <= std::numeric_limits<float>::max() ? size : most;
    }
    return most;
}

// How `rank` ranks are kept; number(r, i) is i of n.
template <typename Number> Kept kept_as(Number number, int64_t rank, int64_t n, bool q8) {
    Kept kept{q8 ? FactorForm::Q8 : FactorForm::HALVES, std::vector<float>(size_t(rank))};
    for (int64_t r = 0; r < rank && kept.form != FactorForm::FLOATS; ++r) {
        const auto own = [&](int64_t i) { return number(r, i); };
        const float most = largest(own, n), unit = unit_of(most, q8 ? LEAST_Q8_SHIFT : -MOST_SHIFT, MOST_SHIFT);
        kept.unit[size_t(r)] = unit;
        bool exact = most * unit < 0x1p15f;
        for (int64_t i = 0; !q8 && exact && i < n; ++i) {
            const float v = own(i);
            exact = v != v || float_from_half(half_from_float(v * unit)) / unit == v;
        }
        if (!q8 && !exact) {
            kept.form = FactorForm::FLOATS;
        }
    }
    if (kept.form == FactorForm::FLOATS) {
        kept.unit.assign(size_t(rank), 1.0f);
    }
    return kept;
}

void keep_number(const Kept& kept, int64_t r, float v, uint8_t* to) {
    if (kept.form == FactorForm::HALVES) {
        const uint16_t half = half_from_float(v * kept.unit[size_t(r)]);
        std::memcpy(to, &half, 2);
    } else {
        std::memcpy(to, &v, 4);
    }
}

int64_t bytes_of(FactorForm form) { return form == FactorForm::HALVES ? 2 : 4; }

// n numbers as codes, `step` bytes from one to the next, and the bits of the half float that scales them.
template <typename Number> uint16_t keep_q8(Number number, int64_t n, uint8_t* codes, int64_t step) {
    float most = 0.0f;
    bool finite = true;
    for (int64_t i = 0; i < n; ++i) {
        const float size = std::fabs(number(i));
        finite = finite && size <= std::numeric_limits<float>::max();
        most = size > most ? size : most;
    }
    const uint16_t half = finite ? half_from_float(most / 127.0f) : NOT_A_NUMBER;
    const float d = finite ? float_from_half(half) : 0.0f;
    for (int64_t i = 0; i < n; ++i) {
        const float code = d > 0.0f ? std::clamp(number(i) / d, -127.0f, 127.0f) : 0.0f;
        codes[i * step] = uint8_t(int8_t(int(code + MAGIC - MAGIC)));
    }
    return half;
}

} // namespace

PackedB::PackedB(const float* b, int64_t experts, int64_t rows, int64_t rank, bool q8, Arena& arena)
    : kept_(kept_as([=](int64_t r, int64_t i) { return b[i * rank + r]; }, rank, experts * rows, q8)) {
    const int64_t group = factor_group_bytes(kept_.form, rank), bytes = bytes_of(kept_.form);
    stride_ = (rows + 15) / 16 * group;
    data_ = arena.get(size_t(experts * stride_));
    for (int64_t e = 0; e < experts; ++e) {
        for (int64_t first = 0; first < rows; first += 16) {
            uint8_t* to = data_ + e * stride_ + first / 16 * group;
            const float* from = b + (e * rows + first) * rank;
            const int64_t n = std::min<int64_t>(16, rows - first);
            for (int64_t r = 0; r < rank; ++r) {
                if (kept_.form == FactorForm::Q8) {
                    const auto number = [&](int64_t i) { return from[i * rank + r] * unit(r); };
                    const uint16_t scale = keep_q8(number, n, to + 2 * rank + 16 * r, 1);
                    std::memcpy(to + 2 * r, &scale, 2);
                    continue;
                }
                for (int64_t i = 0; i < n; ++i) {
                    keep_number(kept_, r, from[i * rank + r], to + (r * 16 + i) * bytes);
                }
            }
        }
    }
}

Linear StackedA::task(int64_t expert, int64_t cols) const {
    Linear l;
    l.rows = rank;
    l.cols = cols;
    l.row_bytes = row_bytes;
    const uint8_t* own = data + expert * stride;
    if (kept.form == FactorForm::Q8) {
        l.type = Q8_0;
        l.packed = own;
    } else {
        l.type = kept.form == FactorForm::HALVES ? F16 : F32;
        l.weight = own;
    }
    return l;
}

StepLora& Adapter::linear(int step, int64_t experts, int64_t cols) {
    require(experts > 0 && cols > 0 && !linears_.count(step), "adapter: a step's A");
    StepLora& lora = linears_[step];
    lora.experts = experts;
    lora.cols = cols;
    return lora;
}

void Adapter::stack(StepLora& lora, const float* a, int64_t rank, bool q8) {
    const int64_t cols = lora.cols;
    require(rank > 0 && (!q8 || cols % 32 == 0), "adapter: a stack of A");
    StackedA stack;
    stack.first = lora.rank;
    stack.rank = rank;
    stack.kept = kept_as([=](int64_t r, int64_t i) { return a[(i / cols * rank + r) * cols + i % cols]; }, rank,
                         lora.experts * cols, q8);
    if (q8) {
        keep_packed(stack, lora, a);
    } else {
        const int64_t bytes = bytes_of(stack.kept.form);
        stack.row_bytes = cols * bytes;
        stack.stride = rank * stack.row_bytes;
        uint8_t* to = arena_.get(size_t(lora.experts * stack.stride));
        for (int64_t row = 0; row < lora.experts * rank; ++row) {
            for (int64_t i = row * cols; i < (row + 1) * cols; ++i) {
                keep_number(stack.kept, row % rank, a[i], to + i * bytes);
            }
        }
        stack.data = to;
    }
    lora.rank += rank;
    lora.stacks.push_back(std::move(stack));
}

// A in blocks of Q8_0, then in the engine's own layout.
void Adapter::keep_packed(StackedA& stack, const StepLora& lora, const float* a) {
    const PackedKernels& kernel = kernels().engine.packed[Q8_0];
    const int64_t cols = lora.cols, rank = stack.rank, groups = (rank + PACKED_ROWS - 1) / PACKED_ROWS;
    stack.row_bytes = cols / 32 * 34;
    stack.stride = groups * kernel.group_bytes(cols);
    uint8_t* to = arena_.get(size_t(lora.experts * stack.stride));
    std::vector<uint8_t> rows(size_t(rank * stack.row_bytes));
    for (int64_t e = 0; e < lora.experts; ++e) {
        for (int64_t r = 0; r < rank; ++r) {
            const float unit = stack.kept.unit[size_t(r)];
            for (int64_t block = 0; block < cols / 32; ++block) {
                const float* from = a + (e * rank + r) * cols + block * 32;
                uint8_t* b = rows.data() + r * stack.row_bytes + block * 34;
                const uint16_t scale = keep_q8([&](int64_t i) { return from[i] * unit; }, 32, b + 2, 1);
                std::memcpy(b, &scale, 2);
            }
        }
        Linear l = stack.task(e, cols);
        l.weight = rows.data();
        for (int64_t g = 0; g < groups; ++g) {
            kernel.pack(l, g * PACKED_ROWS, to + e * stack.stride + g * kernel.group_bytes(cols));
        }
    }
    stack.data = to;
}

void Adapter::layer(StepLora& lora, int layer, int64_t first, float scale, const float* b, int64_t rows, int64_t rank) {
    require(!lora.stacks.empty(), "adapter: B without A");
    const bool q8 = lora.stacks.back().kept.form == FactorForm::Q8;
    lora.layers.push_back(
        {layer, lora.stacks.size() - 1, first, rank, rows, scale, PackedB(b, lora.experts, rows, rank, q8, arena_)});
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
    const StackedA& stack = term.lora->stacks[layer.stack];
    term.parts[i] = {b.of(0),     b.stride(),        stack.first,     stack.rank,
                     layer.layer, int(layer.first), int(layer.rank), b.form()};
    const float gamma = float(double(layer.scale) * term.strength);
    for (int64_t r = 0; r < layer.rank; ++r) {
        const double units = double(stack.kept.unit[size_t(layer.first + r)]) * b.unit(r);
        term.gamma[size_t(stack.first + layer.first + r)] = float(gamma / units);
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
    look_ahead();
    changed();
}

void AdapterSet::changed() {
    static std::atomic<uint64_t> last{0};
    serial_ = ++last;
}

// From the last step on, as each also asks for where the one behind it says what to ask for.
void AdapterSet::look_ahead() {
    const SetStep* behind = linears_.empty() ? nullptr : &linears_.begin()->second; // of the token to come
    for (auto it = linears_.rbegin(); it != linears_.rend(); ++it) {
        std::vector<const uint8_t*>& lines = it->second.ahead;
        const auto add = [&](const void* start, size_t bytes) {
            for (size_t at = 0; at < bytes; at += LINE_BYTES) {
                lines.push_back(static_cast<const uint8_t*>(start) + at);
            }
        };
        const auto add_all = [&](const auto& own) { add(own.data(), own.size() * sizeof own[0]); };
        add(behind, sizeof *behind);
        add_all(behind->terms);
        add_all(behind->ahead);
        for (const SetTerm& term : behind->terms) {
            add(term.lora, sizeof *term.lora);
            add_all(term.lora->stacks);
            add_all(term.gamma);
            add_all(term.parts);
        }
        behind = &it->second;
    }
}

void AdapterSet::rescale(int step, size_t member, size_t lora_layer, const float* b, int64_t experts, int64_t rows,
                         int64_t rank) {
    for (SetTerm& term : linear(step).terms) {
        if (term.member == member && lora_layer < term.parts.size()) {
            const LayerLora& layer = term.lora->layers[lora_layer];
            require(layer.rank == rank && layer.rows == rows && term.lora->experts == experts, "adapter: rescaled B");
            const bool q8 = layer.b.form() == FactorForm::Q8;
            own_.push_back(std::make_unique<PackedB>(b, experts, rows, rank, q8, arena_));
            set_b(term, lora_layer, *own_.back());
            changed();
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
    changed();
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
