// How keys and values lie in the pages of a state pool (state_pool.h), and what the attention kernels take. A page holds
// PAGE_POSITIONS positions of some layers; in it each layer has a part, in the part each key-value head.
#pragma once

#include <cstdint>

namespace lg {

constexpr int64_t PAGE_POSITIONS = 64;
// Keys lie in blocks of 16 positions, transposed, so that a block's scores need no sum across lanes.
constexpr int64_t BLOCK_KEYS = 16;
// The softmax runs over this many keys at a time, counted from position 0; the pieces are merged in order. So a row's
// result does not depend on who computes which piece.
constexpr int64_t SPAN = 256;
// Elements that share a scale in Q8_0.
constexpr int KV_GROUP = 32;

enum class KvType { F32, F16, Q8_0 };

// Where the keys and values of one layer lie in its part of a page. Of one head, in bytes from the head's start:
// keys [PAGE_POSITIONS / 16][key_width][16], values [PAGE_POSITIONS][value_width]; for Q8_0 the same of codes, and the
// scales, F16, of 32 elements each: [PAGE_POSITIONS / 16][key_width / 32][16] and [PAGE_POSITIONS][value_width / 32].
struct KvLayout {
    KvType type = KvType::F32;
    int kv_heads = 0, key_dim = 0, value_dim = 0;
    int key_width = 0, value_width = 0; // the dims, filled up to whole vectors or groups
    int64_t key_scales = 0, values = 0, value_scales = 0;
    int64_t head_bytes = 0;
    int64_t bytes() const { return head_bytes * kv_heads; }
};

KvLayout kv_layout(KvType type, int kv_heads, int key_dim, int value_dim);

// Rounds `n` positions' keys and values of one head to the type and writes them into the page of which `head` is the
// head's start, from position `slot` of the page on. k and v: [n] rows that are `k_stride` and `v_stride` floats apart.
void store_keys_values(const KvLayout& layout, uint8_t* head, int64_t slot, int64_t n, const float* k, int64_t k_stride,
                       const float* v, int64_t v_stride);

struct Page {
    uint8_t* data = nullptr;
    int32_t references = 0;
    int32_t slab = 0;
};

// Query rows of consecutive tokens of one sequence against one key-value head. Row r is token r / group, query head
// r % group of the key-value head's.
struct HeadRows {
    const KvLayout* layout = nullptr;
    const Page* const* pages = nullptr; // the first is page `first_page` of the sequence
    int64_t first_page = 0;
    int64_t offset = 0;        // of the head in a page
    const float* q = nullptr;  // of row 0
    int64_t q_stride = 0;      // floats from token to token
    float* y = nullptr;
    int64_t y_stride = 0;
    const float* sinks = nullptr;  // of the group's heads, or null
    const float* slopes = nullptr; // of the group's heads, or null
    int group = 1;
    int64_t position = 0; // of token 0
    int64_t window = 0;   // 0: none
    int64_t chunk = 0;    // 0: none
    float scale = 1.0f;
    float soft_cap = 0.0f; // 0: none
};

// The first position that a token sees: of its window, or of its chunk.
inline int64_t first_seen_at(const HeadRows& rows, int64_t position) {
    if (rows.chunk) {
        return position / rows.chunk * rows.chunk;
    }
    return rows.window ? position + 1 - (rows.window < position + 1 ? rows.window : position + 1) : 0;
}

constexpr int64_t ATTEND_ROWS = 32; // rows of one call at most

// Floats that a call needs for itself.
inline int64_t attend_scratch(const KvLayout& layout) {
    return ATTEND_ROWS * (layout.key_width + SPAN + 16 + 2 * layout.value_width);
}

// What one row's softmax over one span leaves: the largest score (as a power of 2), the sum of the weights (negative:
// the row sees nothing of this span), and from PARTIAL_VALUES on the weighted sum of the values.
constexpr int64_t PARTIAL_VALUES = 16;
inline int64_t partial_floats(const KvLayout& layout) { return PARTIAL_VALUES + layout.value_width; }

struct PageKernels {
    // Rows [first, last) of y, over all that they see.
    void (*attend)(const HeadRows&, int64_t first, int64_t last, float* scratch) = nullptr;
    // The same over one span: partials [last - first][partial_floats].
    void (*attend_span)(const HeadRows&, int64_t first, int64_t last, int64_t span, float* scratch,
                        float* partials) = nullptr;
    // Rows [first, last) of y from the partials [spans][last - first][partial_floats] of consecutive spans.
    void (*merge_spans)(const HeadRows&, int64_t first, int64_t last, const float* partials, int64_t spans,
                        float* scratch) = nullptr;
};

} // namespace lg
