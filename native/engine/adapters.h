// Adapters as the engine applies them: A stacked for the layers that share an x, B packed as the epilogue reads it; and
// sets of them, each with its strengths.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "os/arena.h"

namespace lg {

constexpr size_t ARENA_BLOCK = size_t(8) << 20; // of an adapter's own memory

// How A (each rank a row) or B (each a column) is kept, as the kernels read it: in 8 bits if asked for; else half floats
// where these hold every number, else floats. What is kept is the number times a power of two, the rank's own,
// which brings its largest near half floats' largest. 8 bits: 32 numbers of a row of A, or 16 of a column of B, are codes
// and a half float, the least that makes the largest 127 (`round_factor` of backends/activations.py defines it).
struct Kept {
    FactorForm form = FactorForm::FLOATS;
    std::vector<float> unit; // of each rank, that power of two; 1 for floats
};

// B of one layer for the epilogue (LoraTerm).
class PackedB {
  public:
    // b [experts][rows][rank]
    PackedB(const float* b, int64_t experts, int64_t rows, int64_t rank, bool q8, Arena& arena);
    const uint8_t* of(int64_t expert) const { return data_ + expert * stride_; }
    int64_t stride() const { return stride_; } // bytes of an expert
    FactorForm form() const { return kept_.form; }
    float unit(int64_t r) const { return kept_.unit[size_t(r)]; }

  private:
    Kept kept_;
    uint8_t* data_;
    int64_t stride_;
};

// What one adapter adds to one layer of a step.
struct LayerLora {
    int layer;     // which of the step's
    size_t stack;  // where its A is
    int64_t first; // its rows in the stack
    int64_t rank;
    int64_t rows; // of the layer, for each expert
    float scale;
    PackedB b;
};

// A of layers whose x is the same, one below the other. In 8 bits it is a packed weight of type Q8_0.
struct StackedA {
    int64_t first = 0, rank = 0; // of the ranks of all stacks of a step
    Kept kept;
    int64_t row_bytes = 0, stride = 0; // stride: of an expert
    const uint8_t* data = nullptr;
    // The product with one expert's; the caller adds x and y.
    Linear task(int64_t expert, int64_t cols) const;
};

// What one adapter does in one step of a program: a linear step, whose layers share x.
struct StepLora {
    int64_t experts = 1, rank = 0, cols = 0; // rank: of all layers together
    std::vector<StackedA> stacks;
    std::vector<LayerLora> layers;
};

// An embedding's: delta of row `id` = scale * b[id] A.
struct EmbedLora {
    int64_t rank = 0, cols = 0, vocabulary = 0;
    float scale = 1.0f;
    std::vector<float> a, b; // [rank][cols], [vocabulary][rank]
};

class Adapter {
  public:
    Adapter() = default;
    Adapter(const Adapter&) = delete;
    Adapter& operator=(const Adapter&) = delete;
    StepLora& linear(int step, int64_t experts, int64_t cols);
    // The next stack, a [experts][rank][cols]; with `q8` its columns are a multiple of 32.
    void stack(StepLora& lora, const float* a, int64_t rank, bool q8);
    // B [experts][rows][rank] of layer `layer` of the step, whose rows in the last stack begin at `first`.
    void layer(StepLora& lora, int layer, int64_t first, float scale, const float* b, int64_t rows, int64_t rank);
    void embed(int step, EmbedLora lora);
    const StepLora* linear_at(int step) const;
    const EmbedLora* embed_at(int step) const;
    const std::map<int, StepLora>& linears() const { return linears_; }
    const std::map<int, EmbedLora>& embeds() const { return embeds_; }

  private:
    void keep_packed(StackedA& stack, const StepLora& lora, const float* a);

    Arena arena_{ARENA_BLOCK};
    std::map<int, StepLora> linears_;
    std::map<int, EmbedLora> embeds_;
};

// What a pass needs of one layer of an adapter, in one place: it is read anew for every token.
struct SetPart {
    const uint8_t* b; // of the first expert
    int64_t stride;
    int64_t stack_first, stack_rank;
    int layer;
    int first, rank; // in the stack
    FactorForm form;
};

// One adapter of a set, in one step.
struct SetTerm {
    const StepLora* lora;
    size_t member;            // which of the set
    double strength;
    std::vector<float> gamma; // of each row of the stacks of A: scale * strength, without the powers of two of A and B
    std::vector<SetPart> parts; // of each of lora->layers
};

struct SetStep {
    std::vector<SetTerm> terms;
    std::vector<std::vector<float>> dora; // of each layer of the step: [experts][rows], or empty
    // Lines of memory that tell what the set does in the step behind this one. They lie all over, and none was read since
    // the token before: a step asks for them while it multiplies.
    std::vector<const uint8_t*> ahead;
};

struct SetEmbed {
    const EmbedLora* lora;
    float gamma;
};

// Adapters that work together, in order. The adapters must outlive it.
class AdapterSet {
  public:
    explicit AdapterSet(const std::vector<std::pair<const Adapter*, double>>& members);
    AdapterSet(const AdapterSet&) = delete;
    AdapterSet& operator=(const AdapterSet&) = delete;
    // DoRA: member `member`'s B for a layer with its rows rescaled, and the factors of the layer's rows.
    void rescale(int step, size_t member, size_t lora_layer, const float* b, int64_t experts, int64_t rows,
                 int64_t rank);
    void dora(int step, size_t layer, std::vector<float> factors);
    const SetStep* linear_at(int step) const;
    const std::vector<SetEmbed>* embed_at(int step) const;
    uint64_t serial() const { return serial_; } // no other set's; another one whenever the set is changed

  private:
    Arena arena_{ARENA_BLOCK};
    SetStep& linear(int step);
    void look_ahead();
    void changed();

    uint64_t serial_ = 0;

    std::map<int, SetStep> linears_;
    std::vector<const SetStep*> by_step_; // the same, or null
    std::map<int, std::vector<SetEmbed>> embeds_;
    std::vector<std::unique_ptr<PackedB>> own_;
};

} // namespace lg
