#include "engine/state_pool.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>

namespace lg {

namespace {

constexpr int64_t MOST_BYTES = int64_t(1) << 40; // of a page, or of a sequence's states
constexpr int64_t MOST_TOKENS = std::numeric_limits<int32_t>::max();

std::string name_of(int64_t sequence) { return "sequence " + std::to_string(sequence) + ": "; }

[[noreturn]] void refuse(int64_t sequence, const std::string& what, int64_t found, const std::string& expected) {
    throw std::invalid_argument(name_of(sequence) + what + ": found " + std::to_string(found) + ", expected " + expected);
}

void check(bool ok, const char* what, int64_t found, const char* expected) {
    if (!ok) {
        throw std::invalid_argument(std::string("state pool: ") + what + ": found " + std::to_string(found)
                                    + ", expected " + expected);
    }
}

int64_t pages_for(int64_t positions) { return (positions + PAGE_POSITIONS - 1) / PAGE_POSITIONS; }

// The first position that a token at `length` sees.
int64_t first_seen(int64_t length, int64_t window) { return window ? std::max<int64_t>(0, length + 1 - window) : 0; }

} // namespace

StatePool::StatePool(std::vector<LayerShape> layers, std::vector<int64_t> state_floats, KvType type, int64_t max_bytes,
                     const PageKernels& kernels)
    : max_bytes_(max_bytes), kernels_(kernels) {
    constexpr int MOST = 1 << 16;
    std::vector<int64_t> page_bytes;
    for (const LayerShape& shape : layers) {
        check(shape.kv_heads > 0 && shape.kv_heads <= MOST, "key-value heads", shape.kv_heads, "1 to 65536");
        check(shape.key_dim > 0 && shape.key_dim <= MOST, "width of a key", shape.key_dim, "1 to 65536");
        check(shape.value_dim > 0 && shape.value_dim <= MOST, "width of a value", shape.value_dim, "1 to 65536");
        check(shape.window >= 0, "window", shape.window, "0 or more");
        const KvLayout layout = kv_layout(type, shape.kv_heads, shape.key_dim, shape.value_dim);
        size_t group = 0;
        while (group < groups_.size() && groups_[group].window != shape.window) {
            ++group;
        }
        if (group == groups_.size()) {
            groups_.push_back({shape.window, nullptr});
            page_bytes.push_back(0);
        }
        layers_.push_back({shape, layout, group, page_bytes[group]});
        page_bytes[group] += layout.bytes();
        check(page_bytes[group] <= MOST_BYTES, "bytes of 64 positions", page_bytes[group], "up to 2^40");
    }
    for (size_t group = 0; group < groups_.size(); ++group) {
        groups_[group].store = std::make_unique<PageStore>(page_bytes[group]);
    }
    int64_t state_bytes = 0;
    for (const int64_t floats : state_floats) {
        check(floats >= 0 && floats <= MOST_BYTES / 4, "floats of a state", floats, "0 to 2^38");
        state_offsets_.push_back(state_bytes / 4);
        state_bytes += (floats + 15) / 16 * 64;
        check(state_bytes <= MOST_BYTES, "bytes of a sequence's states", state_bytes, "up to 2^40");
    }
    if (!state_offsets_.empty()) { // a convolution of one tap keeps nothing
        states_ = std::make_unique<PageStore>(std::max<int64_t>(64, state_bytes));
    }
}

StatePool::Sequence& StatePool::find(int64_t sequence) {
    return const_cast<Sequence&>(static_cast<const StatePool*>(this)->find(sequence));
}

const StatePool::Sequence& StatePool::find(int64_t sequence) const {
    const auto found = sequences_.find(sequence);
    if (found == sequences_.end()) {
        throw std::invalid_argument(name_of(sequence) + "is not open");
    }
    return found->second;
}

int64_t StatePool::length(int64_t sequence) const { return find(sequence).length; }

int64_t StatePool::bytes() const {
    int64_t bytes = states_ ? states_->used() * states_->page_bytes() : 0;
    for (const Group& group : groups_) {
        bytes += group.store->used() * group.store->page_bytes();
    }
    return bytes;
}

void StatePool::check_room(int64_t more) const {
    if (max_bytes_ && more > max_bytes_ - bytes()) {
        throw PoolFull("state pool: no room for " + std::to_string(more) + " bytes more: found "
                       + std::to_string(bytes()) + " in use, expected up to " + std::to_string(max_bytes_)
                       + " in all; close a sequence or raise the bound");
    }
}

StatePool::Sequence StatePool::blank() const {
    Sequence sequence;
    sequence.tables.resize(groups_.size());
    return sequence;
}

int64_t StatePool::add(Sequence&& sequence) {
    sequences_.emplace(next_, std::move(sequence));
    return next_++;
}

int64_t StatePool::open() {
    return add(blank());
}

void StatePool::check_cut(const char* what, int64_t number, const Sequence& sequence, int64_t length) const {
    int64_t least = 0; // but for 0 itself, which is always possible
    for (size_t group = 0; group < groups_.size(); ++group) {
        if (sequence.tables[group].first > 0) {
            least = std::max(least, sequence.tables[group].first * PAGE_POSITIONS + groups_[group].window - 1);
        }
    }
    if (!state_offsets_.empty()) {
        least = sequence.length;
    }
    if (length != 0 && (length < least || length > sequence.length)) {
        refuse(number, what, length,
               (least ? "0 or " : "") + std::to_string(least) + " to " + std::to_string(sequence.length) + " tokens");
    }
}

int64_t StatePool::fork(int64_t number, int64_t length) {
    const Sequence& parent = find(number);
    check_cut("cannot be forked", number, parent, length);
    Sequence child = blank();
    child.length = length;
    child.states = length == parent.length ? parent.states : nullptr;
    for (size_t group = 0; group < groups_.size(); ++group) {
        const Table& from = parent.tables[group];
        Table& table = child.tables[group];
        if (first_seen(length, groups_[group].window) < length) {
            table.first = from.first;
            table.pages.assign(from.pages.begin(), from.pages.begin() + (pages_for(length) - from.first));
        } else {
            table.first = length / PAGE_POSITIONS; // nothing of it will be seen again
        }
    }
    const int64_t added = add(std::move(child));
    const Sequence& fork = sequences_.at(added);
    for (const Table& table : fork.tables) {
        for (Page* page : table.pages) {
            ++page->references;
        }
    }
    if (fork.states) {
        ++fork.states->references;
    }
    return added;
}

void StatePool::truncate(int64_t number, int64_t length) {
    Sequence& sequence = find(number);
    check_cut("cannot be cut", number, sequence, length);
    for (size_t group = 0; group < groups_.size(); ++group) {
        Table& table = sequence.tables[group];
        const bool seen = first_seen(length, groups_[group].window) < length;
        const int64_t end = seen ? pages_for(length) : table.first;
        while (table.end() > end) {
            groups_[group].store->drop(table.pages.back());
            table.pages.pop_back();
        }
        if (!seen) {
            table.first = length / PAGE_POSITIONS;
        }
    }
    if (length < sequence.length) {
        drop_state(sequence.states);
    }
    sequence.length = length;
}

void StatePool::close(int64_t number) {
    Sequence& sequence = find(number);
    for (size_t group = 0; group < groups_.size(); ++group) {
        for (Page* page : sequence.tables[group].pages) {
            groups_[group].store->drop(page);
        }
    }
    drop_state(sequence.states);
    drop_state(sequence.coming);
    sequences_.erase(number);
}

void StatePool::check_list(const std::vector<std::pair<int64_t, int64_t>>& list) const {
    std::set<int64_t> seen;
    for (const auto& [number, tokens] : list) {
        const int64_t left = MOST_TOKENS - find(number).length;
        if (tokens < 0 || tokens > left) {
            refuse(number, "cannot grow by so many tokens", tokens, "0 to " + std::to_string(left));
        }
        if (!seen.insert(number).second) {
            throw std::invalid_argument(name_of(number) + "is named twice");
        }
    }
}

void StatePool::reserve(const std::vector<std::pair<int64_t, int64_t>>& list) {
    check_list(list);
    struct Growth {
        size_t group;
        Table* table;
        int64_t copied; // the page of the table that is shared and will be written to, or -1
        int64_t pages;  // that are added at the end
        std::vector<Page*> taken;
    };
    std::vector<Growth> growths;
    std::map<const Page*, int32_t> references; // as they will be
    int64_t wanted = 0;
    for (const auto& [number, tokens] : list) {
        Sequence& sequence = find(number);
        for (size_t group = 0; tokens && group < groups_.size(); ++group) {
            Table& table = sequence.tables[group];
            Growth growth{group, &table, -1, std::max<int64_t>(0, pages_for(sequence.length + tokens) - table.end()), {}};
            const int64_t at = sequence.length / PAGE_POSITIONS - table.first;
            if (at < int64_t(table.pages.size())) {
                const Page* page = table.pages[size_t(at)];
                int32_t& left = references.try_emplace(page, page->references).first->second;
                if (left > 1) {
                    --left;
                    growth.copied = at;
                }
            }
            const int64_t pages = growth.pages + (growth.copied >= 0), bytes = groups_[group].store->page_bytes();
            check(pages <= (std::numeric_limits<int64_t>::max() - wanted) / bytes, "pages", pages, "fewer");
            wanted += pages * bytes;
            growths.push_back(std::move(growth));
        }
    }
    std::vector<Sequence*> recurrent; // that have no place yet for what their states will be
    for (const auto& [number, tokens] : list) {
        Sequence& sequence = find(number);
        if (states_ && tokens && !sequence.coming) {
            recurrent.push_back(&sequence);
            check(wanted <= std::numeric_limits<int64_t>::max() - states_->page_bytes(), "pages", wanted, "fewer");
            wanted += states_->page_bytes();
        }
    }
    check_room(wanted);
    try {
        for (Sequence* sequence : recurrent) {
            sequence->coming = states_->take();
        }
        for (Growth& growth : growths) {
            const int64_t pages = growth.pages + (growth.copied >= 0);
            growth.taken.reserve(size_t(pages));
            growth.table->pages.reserve(growth.table->pages.size() + size_t(growth.pages));
            for (int64_t i = 0; i < pages; ++i) {
                growth.taken.push_back(groups_[growth.group].store->take());
            }
        }
    } catch (...) {
        for (const Growth& growth : growths) {
            for (Page* page : growth.taken) {
                groups_[growth.group].store->drop(page);
            }
        }
        for (Sequence* sequence : recurrent) {
            drop_state(sequence->coming);
        }
        throw;
    }
    for (Growth& growth : growths) {
        PageStore& store = *groups_[growth.group].store;
        if (growth.copied >= 0) {
            Page*& shared = growth.table->pages[size_t(growth.copied)];
            Page* own = growth.taken.back();
            growth.taken.pop_back();
            std::memcpy(own->data, shared->data, size_t(store.page_bytes()));
            store.drop(shared);
            shared = own;
        }
        growth.table->pages.insert(growth.table->pages.end(), growth.taken.begin(), growth.taken.end());
    }
}

void StatePool::advance(const std::vector<std::pair<int64_t, int64_t>>& list) {
    check_list(list);
    for (const auto& [number, tokens] : list) {
        const Sequence& sequence = find(number);
        for (const Table& table : sequence.tables) {
            if (sequence.length + tokens > table.end() * PAGE_POSITIONS && tokens) {
                refuse(number, "has no room for so many tokens", tokens,
                       "up to " + std::to_string(table.end() * PAGE_POSITIONS - sequence.length));
            }
        }
    }
    for (const auto& [number, tokens] : list) {
        Sequence& sequence = find(number);
        sequence.length += tokens;
        if (tokens && sequence.coming) {
            drop_state(sequence.states);
            std::swap(sequence.states, sequence.coming);
        }
        for (size_t group = 0; group < groups_.size(); ++group) {
            Table& table = sequence.tables[group];
            const int64_t seen = first_seen(std::max<int64_t>(0, sequence.length - REWIND), groups_[group].window);
            const int64_t gone = std::clamp<int64_t>(seen / PAGE_POSITIONS - table.first, 0, int64_t(table.pages.size()));
            for (int64_t i = 0; i < gone; ++i) {
                groups_[group].store->drop(table.pages[size_t(i)]);
            }
            table.pages.erase(table.pages.begin(), table.pages.begin() + gone);
            table.first += gone;
        }
    }
}

void StatePool::drop_state(Page*& page) noexcept {
    if (page) {
        states_->drop(page);
        page = nullptr;
    }
}

int64_t StatePool::state_at(int recurrent_layer) const {
    check(recurrent_layer >= 0 && size_t(recurrent_layer) < state_offsets_.size(), "recurrent layer", recurrent_layer,
          "one of the model's");
    return state_offsets_[size_t(recurrent_layer)];
}

const float* StatePool::state_before(int64_t number, int64_t position, int recurrent_layer) const {
    const Sequence& sequence = find(number);
    const int64_t offset = state_at(recurrent_layer);
    if (position < sequence.length) {
        refuse(number, "does not hold the state of this position", position, std::to_string(sequence.length) + " or more");
    }
    const Page* page = position == sequence.length ? sequence.states : sequence.coming;
    return page ? reinterpret_cast<const float*>(page->data) + offset : nullptr;
}

float* StatePool::state_after(int64_t number, int recurrent_layer) {
    const Sequence& sequence = find(number);
    const int64_t offset = state_at(recurrent_layer);
    if (!sequence.coming) {
        throw std::invalid_argument(name_of(number) + "no room was made for its states");
    }
    return reinterpret_cast<float*>(sequence.coming->data) + offset;
}

} // namespace lg
