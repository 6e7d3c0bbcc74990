// The part of the state pool that works on rows: shares writing and attention out over threads.
#include <algorithm>
#include <atomic>

#include "engine/state_pool.h"

namespace lg {

namespace {

// Less work than this many multiply-adds is done by the calling thread: waking others takes longer.
constexpr int64_t ALONE = 1 << 17;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

} // namespace

// Rows of one sequence at consecutive positions.
struct StatePool::Run {
    const Table* table;
    int64_t row, position, count;
};

const StatePool::Layer& StatePool::layer_at(int layer) const {
    if (layer < 0 || size_t(layer) >= layers_.size()) {
        throw std::invalid_argument("state pool: no such layer: found " + std::to_string(layer) + ", expected 0 to "
                                    + std::to_string(int64_t(layers_.size()) - 1));
    }
    return layers_[size_t(layer)];
}

std::vector<StatePool::Run> StatePool::runs_of(const Layer& layer, const std::vector<RowPlace>& rows) const {
    std::vector<Run> runs;
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto [number, position] = rows[i];
        if (i > 0 && number == rows[i - 1].sequence && position == rows[i - 1].position + 1) {
            ++runs.back().count;
        } else {
            const Table& table = find(number).tables[layer.group];
            const int64_t window = layer.shape.window;
            const int64_t sees = window ? std::max<int64_t>(0, position + 1 - window) : 0;
            if (position < 0 || sees / PAGE_POSITIONS < table.first) {
                throw std::invalid_argument("sequence " + std::to_string(number) + ": what a token sees was let go: found "
                                            "position " + std::to_string(position) + ", expected "
                                            + std::to_string(table.first * PAGE_POSITIONS) + " or more");
            }
            runs.push_back({&table, int64_t(i), position, 1});
        }
        if (position >= runs.back().table->end() * PAGE_POSITIONS) {
            throw std::invalid_argument("sequence " + std::to_string(number) + ": no room was made: found position "
                                        + std::to_string(position) + ", expected less than "
                                        + std::to_string(runs.back().table->end() * PAGE_POSITIONS));
        }
    }
    return runs;
}

void StatePool::append(ThreadPool& pool, int number, const std::vector<RowPlace>& rows, const float* k, const float* v) {
    const Layer& layer = layer_at(number);
    const KvLayout& layout = layer.layout;
    const int64_t k_stride = int64_t(layout.kv_heads) * layout.key_dim;
    const int64_t v_stride = int64_t(layout.kv_heads) * layout.value_dim;
    struct Piece { // rows in one page
        uint8_t* part;
        int64_t row, slot, count;
    };
    std::vector<Piece> pieces;
    for (const Run& run : runs_of(layer, rows)) {
        for (int64_t done = 0; done < run.count;) {
            const int64_t position = run.position + done, slot = position % PAGE_POSITIONS;
            const int64_t count = std::min(run.count - done, PAGE_POSITIONS - slot);
            const Page* page = run.table->pages[size_t(position / PAGE_POSITIONS - run.table->first)];
            if (page->references != 1 || position < find(rows[size_t(run.row)].sequence).length) {
                throw std::invalid_argument("sequence " + std::to_string(rows[size_t(run.row)].sequence)
                                            + ": would be overwritten: found position " + std::to_string(position)
                                            + ", expected one that room was made for");
            }
            pieces.push_back({page->data + layer.offset, run.row + done, slot, count});
            done += count;
        }
    }
    const auto store = [&](int64_t chunk, int) {
        const Piece& piece = pieces[size_t(chunk / layout.kv_heads)];
        const int64_t head = chunk % layout.kv_heads;
        store_keys_values(layout, piece.part + head * layout.head_bytes, piece.slot, piece.count,
                          k + piece.row * k_stride + head * layout.key_dim, k_stride,
                          v + piece.row * v_stride + head * layout.value_dim, v_stride);
    };
    const int64_t chunks = int64_t(pieces.size()) * layout.kv_heads;
    if (int64_t(rows.size()) * (k_stride + v_stride) < ALONE / 8) {
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            store(chunk, 0);
        }
    } else {
        pool.run(chunks, store);
    }
}

void StatePool::attend(ThreadPool& pool, int number, const AttentionTask& task, const std::vector<RowPlace>& rows) const {
    const Layer& layer = layer_at(number);
    const KvLayout& layout = layer.layout;
    if (task.heads <= 0 || task.heads % layout.kv_heads) {
        throw std::invalid_argument("state pool: query heads: found " + std::to_string(task.heads)
                                    + ", expected a multiple of " + std::to_string(layout.kv_heads));
    }
    const int group = task.heads / layout.kv_heads;

    struct Part { // up to ATTEND_ROWS rows of one head
        HeadRows rows;
        int64_t first, last;
        int64_t first_span, spans; // that they see
        int64_t partials = 0;      // where theirs begin
        int64_t chunks = 1;        // over which its spans are shared out
    };
    std::vector<Part> parts;
    int64_t all_spans = 0, work = 0;
    for (const Run& run : runs_of(layer, rows)) {
        HeadRows r;
        r.layout = &layout;
        r.pages = run.table->pages.data();
        r.first_page = run.table->first;
        r.q_stride = int64_t(task.heads) * layout.key_dim;
        r.y_stride = int64_t(task.heads) * layout.value_dim;
        r.group = group;
        r.position = run.position;
        r.window = layer.shape.window;
        r.scale = task.scale;
        r.soft_cap = task.soft_cap;
        r.chunk = task.chunk;
        const int64_t query_rows = run.count * group;
        // The last tokens see the most keys: they are handed out first.
        for (int64_t step = ceil_div(query_rows, ATTEND_ROWS) - 1; step >= 0; --step) {
            const int64_t first = step * ATTEND_ROWS, last = std::min(query_rows, first + ATTEND_ROWS);
            const int64_t low = run.position + first / group, high = run.position + (last - 1) / group;
            const int64_t first_span = first_seen_at(r, low) / SPAN;
            const int64_t spans = high / SPAN + 1 - first_span;
            for (int head = 0; head < layout.kv_heads; ++head) {
                r.offset = layer.offset + head * layout.head_bytes;
                r.q = task.q + run.row * r.q_stride + int64_t(head) * group * layout.key_dim;
                r.y = task.y + run.row * r.y_stride + int64_t(head) * group * layout.value_dim;
                r.sinks = task.sinks ? task.sinks + head * group : nullptr;
                r.slopes = task.slopes ? task.slopes + head * group : nullptr;
                parts.push_back({r, first, last, first_span, spans});
            }
            all_spans += layout.kv_heads * spans;
            work += layout.kv_heads * (last - first) * spans * SPAN * (layout.key_dim + layout.value_dim);
        }
    }
    const bool alone = work < ALONE || pool.size() == 1;
    const int threads = alone ? 1 : pool.size();
    // A part longer than a thread's fair share is cut, so that none waits long for another.
    const int64_t share = alone ? all_spans : ceil_div(all_spans, threads * 4);
    struct Chunk {
        size_t part;
        int64_t first, last; // spans of the part
    };
    std::vector<Chunk> chunks;
    int64_t floats = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
        Part& part = parts[i];
        part.chunks = ceil_div(part.spans, share);
        const int64_t step = ceil_div(part.spans, part.chunks);
        part.chunks = ceil_div(part.spans, step);
        for (int64_t first = 0; first < part.spans; first += step) {
            chunks.push_back({i, first, std::min(part.spans, first + step)});
        }
        part.partials = floats;
        floats += part.chunks > 1 ? part.spans * (part.last - part.first) * partial_floats(layout) : 0;
    }
    const int64_t scratch_floats = (attend_scratch(layout) + 15) / 16 * 16;
    float *scratch = scratch_.get(threads * scratch_floats), *partials = partials_.get(floats);
    std::vector<std::atomic<int64_t>> done(parts.size());
    const auto compute = [&](int64_t number, int thread) {
        const Chunk& chunk = chunks[size_t(number)];
        const Part& part = parts[chunk.part];
        float* mine = scratch + thread * scratch_floats;
        if (part.chunks == 1) {
            kernels_.attend(part.rows, part.first, part.last, mine);
            return;
        }
        const int64_t step = (part.last - part.first) * partial_floats(layout);
        for (int64_t span = chunk.first; span < chunk.last; ++span) {
            kernels_.attend_span(part.rows, part.first, part.last, part.first_span + span, mine,
                                 partials + part.partials + span * step);
        }
        // Who finishes the last of a part's chunks merges them.
        if (done[chunk.part].fetch_add(1, std::memory_order_acq_rel) + 1 == part.chunks) {
            kernels_.merge_spans(part.rows, part.first, part.last, partials + part.partials, part.spans, mine);
        }
    };
    if (alone) {
        for (size_t i = 0; i < chunks.size(); ++i) {
            compute(int64_t(i), 0);
        }
    } else {
        pool.run(int64_t(chunks.size()), compute);
    }
}

} // namespace lg
