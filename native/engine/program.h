// A prepared graph: steps over values, run for batches of rows. Python plans it (backends/plan.py) and builds it step by
// step (backends/cpu/build.py); a forward pass is then one call. What each step means is defined by
// src/loragraft/backends/reference_ops.py.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "engine/adapters.h"
#include "engine/engine_run.h"
#include "engine/scratch.h"
#include "engine/state_pool.h"
#include "engine/weight.h"

namespace lg {

// Rows of a pass through all steps; a longer batch takes several.
constexpr int64_t PASS_ROWS = 512;

// Whether a value has all rows, or those alone whose logits are wanted.
enum Space : int { ALL = 0, WANTED = 1 };

// Where value number `id` lies: `offset` floats a row into the program's memory, `width` elements a row. The output lies
// with the caller.
struct Value {
    static constexpr int64_t OUTPUT = -1;
    int64_t id = 0, offset = 0, width = 0;
    Space space = ALL;
};

// What `Options.activations` asks for.
enum class Rounding { F32, Q8, NVFP4 };

// The rows of a batch. Those of a sequence lie together, in order, and continue it.
struct Rows {
    int64_t count = 0;
    const int32_t* tokens = nullptr;
    const int64_t* sequences = nullptr;
    const int32_t* positions = nullptr;
    const uint8_t* wants = nullptr;
    const int32_t* sets = nullptr; // which of the sets; -1: none
    const float* hidden = nullptr; // [count][hidden_width], where the graph takes it
    int64_t hidden_width = 0;
};

// Rows that share a set of adapters.
struct Segment {
    const AdapterSet* set = nullptr;
    std::vector<int32_t> rows[2]; // by space: which of its rows
};

// Shown the input x [rows][each][cols] of a linear step before it, and for experts the ids [rows][used] of those chosen.
using Look = std::function<void(int step, const float* x, int64_t rows, int64_t each, int64_t cols, const int32_t* ids,
                                int64_t used)>;

// Tokens sorted by the expert that they were routed to: expert e has columns [start[e], start[e + 1]).
struct Routing {
    std::vector<int32_t> start, x_row, y_row;
};

// What the adapters of a pass do in one linear step: the products with A, and what the epilogue of the layers reads.
struct Bound {
    uint64_t binding = 0;         // of the pass that it was made for
    bool any = false;             // whether there are adapters at all
    std::vector<Linear> products; // without x
    Scratch<float> gamma, xa;     // the products' factors, and what comes of them
    Scratch<int32_t> x_rows;
    Scratch<LoraTerm> terms;
    Scratch<RowEnd> product_ends, ends; // ends: [layers][rows * used]
    int64_t n_gamma = 0, n_terms = 0, n_ends = 0;
    Bound* next = nullptr; // of the step that comes after it
};

// What the linear steps work with; kept from one to the next.
struct LinearScratch {
    Bound bound;
    Bound* last = nullptr; // of the last step with adapters that keeps its own
    std::vector<Scratch<float>> rounded;
    std::vector<Linear> tasks;
    std::vector<Routing> routings;
};

// What the steps of one pass share.
struct Pass {
    Pass(ThreadPool& own_threads, StatePool& own_states, Rounding own_rounding)
        : threads(own_threads), states(own_states), rounding(own_rounding) {}

    ThreadPool& threads;
    StatePool& states;
    const Rounding rounding;
    int64_t rows[2] = {0, 0}; // by space
    Rows batch;               // of this pass alone
    std::vector<RowPlace> places;
    std::vector<int32_t> wanted; // which rows are
    std::vector<Segment> segments;
    uint64_t binding = 0; // another number whenever rows, segments or their memory are not those of the pass before
    const Look* look = nullptr;
    float* memory = nullptr;
    float* output = nullptr;
    LinearScratch linear;

    float* floats(const Value& v) const { return v.offset == Value::OUTPUT ? output : memory + v.offset * rows[ALL]; }
    int32_t* ints(const Value& v) const { return reinterpret_cast<int32_t*>(floats(v)); }
    // The 8-bit form of a value with `cols` columns; made once for the steps that read it one after the other.
    Activations quantized(const Value& v, int64_t cols);
    void forget_quantized() { quantized_ = -1; }

  private:
    QuantizedRows rows8_;
    Activations now_;
    int64_t quantized_ = -1; // the value's id
};

class Step {
  public:
    explicit Step(Space space) : space(space) {}
    virtual ~Step() = default;
    virtual void run(Pass& pass) const = 0;
    virtual void check(const AdapterSet&) const {} // throws std::invalid_argument if the set does not fit the step
    const Space space; // a step in which no row has a part is left out
};

// A linear layer's place in a step.
struct LayerSite {
    const Weight* weight = nullptr;
    Value y;
    std::vector<float> scale, bias, input_scale; // [experts], [experts][rows], [experts]; or empty
    float arch_scale = 1.0f;
};

// Cosines and sines of the rows' positions, worked out once a pass.
class RopeTable {
  public:
    RopeTable(std::vector<double> per_position, double magnitude)
        : per_position_(std::move(per_position)), magnitude_(magnitude) {}
    void fill(const Rows& rows);
    int64_t half() const { return int64_t(per_position_.size()); }
    const float* cosines(int64_t row) const { return cosines_.data() + row * half(); }
    const float* sines(int64_t row) const { return sines_.data() + row * half(); }

  private:
    std::vector<double> per_position_;
    double magnitude_;
    std::vector<float> cosines_, sines_;
};

// ---- the steps, by the file that defines them; `step` is the number that adapters and observers know it by ----

// program_embed.cpp
std::unique_ptr<Step> embed_step(int step, const Weight* weight, Value y, bool by_position, float scale, float arch_scale);
std::unique_ptr<Step> hidden_step(Value y);
std::unique_ptr<Step> last_step(Value x, Value y);

// program_linear.cpp: dense, or for the experts `ids`
std::unique_ptr<Step> linear_step(int step, Value x, const Value* ids, std::vector<LayerSite> layers);

// program_pointwise.cpp
using Unary = std::function<void(const float* x, float* y, int64_t n)>;
using Binary = void (*)(const float* a, const float* b, float* y, int64_t n);
// Of each n elements; the weight [..][n] begins anew where it ends.
std::unique_ptr<Step> rms_norm_step(Value x, Value y, std::vector<float> weight, int64_t n, float eps);
std::unique_ptr<Step> layer_norm_step(Value x, Value y, std::vector<float> weight, std::vector<float> bias, float eps);
std::unique_ptr<Step> unary_step(Value x, Value y, Unary f);
std::unique_ptr<Step> affine_step(Value x, Value y, float factor, float shift); // x * factor + shift
std::unique_ptr<Step> binary_step(Value a, Value b, Value y, Binary f);
std::unique_ptr<Step> mul_rows_step(Value a, Value b, Value y); // each element of b for several of a
std::unique_ptr<Step> xielu_step(Value x, Value y, float alpha_p, float alpha_n, float beta, float eps);
std::unique_ptr<Step> match_rms_step(Value x, Value y, Value to, int64_t n, float least); // of each n elements of x
std::unique_ptr<Step> gaussian_top_k_step(Value x, Value to, int64_t n, float deviations);
std::unique_ptr<Step> channel_scale_step(Value x, Value y, std::vector<float> weight);
std::unique_ptr<Step> split_step(Value x, Value y, int64_t parts, int64_t start);
std::unique_ptr<Step> concat_step(Value a, Value b, Value y, int64_t parts);

// program_routing.cpp
std::unique_ptr<Step> all_experts_step(Value ids); // 0 to its width - 1, in each row
std::unique_ptr<Step> top_k_step(Value logits, Value ids);
enum class Gates { SOFTMAX, SIGMOID, SPARSE_MIXER };
// `margin`: of SPARSE_MIXER, how far below an expert's logit others may be that its softmax counts
std::unique_ptr<Step> route_step(Value logits, Value ids, Value weights, Gates gates, bool normalize, float scale,
                                 float margin);
std::unique_ptr<Step> experts_sum_step(Value y, Value weights, Value sum);

// program_choice.cpp: as top_k_step, of the gates' values plus a bias, within the best groups
enum class Gating { NONE, SOFTMAX, SIGMOID };
struct Choice {
    Gating gating = Gating::NONE;
    std::vector<float> bias; // [experts], or empty
    int64_t groups = 1, groups_used = 1;
    int64_t best = 1; // whose sum a group is judged by
};
std::unique_ptr<Step> choice_step(Value logits, Value ids, Choice choice);

// program_position.cpp
std::unique_ptr<Step> position_scale_step(Value x, Value y, double length, double offset, double slope);

// program_attention.cpp
std::unique_ptr<Step> rope_step(Value x, Value y, const RopeTable* table, int heads, bool adjacent);
std::unique_ptr<Step> attention_step(Value q, Value k, Value v, Value y, int layer, int heads, float scale, float soft_cap,
                                     std::vector<float> sinks, std::vector<float> slopes, int64_t chunk);

// program_recurrent.cpp; `state`: which of the pool's recurrent states is the step's
std::unique_ptr<Step> time_step(Value x, Value y, std::vector<float> bias, float low, float high);
std::unique_ptr<Step> short_conv_step(Value x, Value y, int state, std::vector<float> weight, std::vector<float> bias,
                                      int width); // weight [channels][width]
struct ScanValues {
    Value q, k, v, rate, beta, y;
    bool has_beta = false; // the delta rule
};
struct ScanShape {
    int64_t heads = 0, key_heads = 0, key_dim = 0, value_dim = 0;
    bool tiled = false; // head h has the key of head h % key_heads, else of h / (heads / key_heads)
};
int64_t scan_floats(const ScanShape& shape); // of the state
std::unique_ptr<Step> scan_step(ScanValues values, ScanShape shape, int state, std::vector<float> decay,
                                std::vector<float> skip);

class Program {
  public:
    // `threads`: 0 for as many as the process may run on; `floats`: of memory that a row takes.
    Program(int threads, Rounding rounding, int64_t floats, std::vector<LayerShape> layers,
            std::vector<int64_t> state_floats, KvType type, int64_t max_bytes);

    int add(std::unique_ptr<Step> step); // its number
    int next() const { return int(steps_.size()); }
    const RopeTable* rope_table(std::vector<double> per_position, double magnitude);

    // Throws std::invalid_argument if the set was made for another program.
    void check(const AdapterSet& set) const;

    // Appends the rows to their sequences; the output's rows go to `output` [..][width], in order. If anything throws, no
    // sequence has changed.
    void run(const Rows& rows, const std::vector<const AdapterSet*>& sets, const Value& value, float* output,
             const Look* look);

    const std::vector<LayerShape>& layers() const { return layers_; }
    ThreadPool& threads() { return threads_; }
    StatePool& states() { return states_; }

  private:
    void begin(const Rows& rows, const std::vector<const AdapterSet*>& sets);
    void bind();

    ThreadPool threads_;
    const std::vector<LayerShape> layers_;
    StatePool states_;
    const int64_t floats_;
    std::vector<std::unique_ptr<Step>> steps_;
    std::vector<std::unique_ptr<RopeTable>> tables_;
    Scratch<float> memory_;
    std::vector<uint64_t> key_, last_key_; // of the pass's binding, and of the one before it
    Pass pass_;
};

} // namespace lg
