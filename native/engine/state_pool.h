// What sequences remember: keys and values of attention layers in pages that sequences share, and the states of
// recurrent layers. Nothing here depends on Python. Calls must be made one at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv_pages.h"
#include "engine/page_store.h"
#include "engine/scratch.h"
#include "os/threads.h"

namespace lg {

struct LayerShape {
    int kv_heads = 0, key_dim = 0, value_dim = 0;
    int64_t window = 0; // a token sees itself and window - 1 before it; 0: all
};

struct RowPlace {
    int64_t sequence, position;
};

// Attention of one layer for some rows.
struct AttentionTask {
    const float* q = nullptr; // [rows][heads * key_dim]
    float* y = nullptr;       // [rows][heads * value_dim]
    int heads = 0;            // a multiple of the layer's kv_heads
    float scale = 1.0f;
    float soft_cap = 0.0f;        // score = cap * tanh(score / cap), after the scale; 0: none
    const float* sinks = nullptr; // [heads], a logit each in the softmax's denominator that has no value; or null
    const float* slopes = nullptr; // [heads], what a score loses for each position that its key lies back; or null
    int64_t chunk = 0;             // a token sees what lies in its own chunk of so many positions; 0: all
};

// The pool may hold no more bytes than it has been allowed.
class PoolFull : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

class StatePool {
  public:
    // How far a sequence can always be cut back, also where a window has let older pages go.
    static constexpr int64_t REWIND = 64;

    // `state_floats`: the size of each recurrent layer's state. `max_bytes`: of pages in use and states together; 0: no
    // bound. Memory comes in slabs of 8 MB, so that the process may hold somewhat more. `kernels`: the instruction set's.
    // Throws std::invalid_argument for shapes that are out of all proportion.
    StatePool(std::vector<LayerShape> layers, std::vector<int64_t> state_floats, KvType type, int64_t max_bytes,
              const PageKernels& kernels);

    // All of these throw std::invalid_argument for a sequence that is not open, and whatever they throw, nothing has
    // changed. States are zeros in the beginning, and shared by forks. Throw PoolFull and std::bad_alloc where they need
    // memory.
    int64_t open();
    // A new sequence with the first `length` tokens of another. Pages are shared until one of the two writes. A sequence
    // with recurrent states can be forked at its present length or at 0 only, as they do not say what they were before.
    int64_t fork(int64_t sequence, int64_t length);
    // Forgets all tokens after the first `length`. Refused where recurrent states would have to go back (but 0 is
    // allowed), and where a window's older pages, which the next token would see, were let go.
    void truncate(int64_t sequence, int64_t length);
    void close(int64_t sequence);
    int64_t length(int64_t sequence) const;
    int64_t bytes() const;

    // Makes room for the coming tokens of some sequences, each named once; copies a shared page that they will write to.
    void reserve(const std::vector<std::pair<int64_t, int64_t>>& sequences_and_tokens);
    // Writes k [rows][kv_heads * key_dim] and v [rows][kv_heads * value_dim] at places for which there is room, after
    // what the sequences hold.
    void append(ThreadPool& pool, int layer, const std::vector<RowPlace>& rows, const float* k, const float* v);
    // Each row attends to its own position and those before it, all appended. A row's result depends on q and on the
    // keys and values that are stored for its sequence alone: to the bit, whatever the other rows and the number of
    // threads. Rows of one sequence in order of position, one after the other, are computed together.
    void attend(ThreadPool& pool, int layer, const AttentionTask& task, const std::vector<RowPlace>& rows) const;
    // The state [state_floats] that a row at `position` goes on from; null: zeros. It is what the sequence holds at its
    // first coming position, and what the rows before have made it (`state_after`) at later ones.
    const float* state_before(int64_t sequence, int64_t position, int recurrent_layer) const;
    // Where the state behind the coming tokens is written, for which there is room. It takes effect with `advance`.
    float* state_after(int64_t sequence, int recurrent_layer);
    // The sequences have so many tokens more; pages that no coming token will see, nor one after a cut of up to REWIND
    // tokens, are given back.
    void advance(const std::vector<std::pair<int64_t, int64_t>>& sequences_and_tokens);

  private:
    // Layers with the same window: their parts of a position are in one page.
    struct Group {
        int64_t window;
        std::unique_ptr<PageStore> store;
    };
    struct Layer {
        LayerShape shape;
        KvLayout layout;
        size_t group;
        int64_t offset; // of its part in a page
    };
    struct Table {
        int64_t first = 0; // the number of pages[0]; those before it were let go
        std::vector<Page*> pages;
        int64_t end() const { return first + int64_t(pages.size()); }
    };
    struct Sequence {
        int64_t length = 0;
        std::vector<Table> tables; // by group
        Page* states = nullptr; // of all recurrent layers; null: zeros
        Page* coming = nullptr; // behind the tokens under way, or null
    };
    struct Run;

    Sequence& find(int64_t sequence);
    const Sequence& find(int64_t sequence) const;
    void check_cut(const char* what, int64_t number, const Sequence& sequence, int64_t length) const;
    void check_list(const std::vector<std::pair<int64_t, int64_t>>& sequences_and_tokens) const;
    void check_room(int64_t bytes) const;
    const Layer& layer_at(int layer) const;
    int64_t state_at(int recurrent_layer) const;
    void drop_state(Page*& page) noexcept;
    Sequence blank() const;
    int64_t add(Sequence&& sequence);
    std::vector<Run> runs_of(const Layer& layer, const std::vector<RowPlace>& rows) const;

    std::vector<Layer> layers_;
    std::vector<Group> groups_;
    std::vector<int64_t> state_offsets_; // in floats
    std::unique_ptr<PageStore> states_;  // null without recurrent layers
    const int64_t max_bytes_;
    const PageKernels& kernels_;
    int64_t next_ = 0;
    std::map<int64_t, Sequence> sequences_;
    mutable Scratch<float> scratch_, partials_;
};

} // namespace lg
