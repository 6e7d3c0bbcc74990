#include "engine/program.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lg {

Activations Pass::quantized(const Value& v, int64_t cols) {
    if (quantized_ != v.id) {
        now_ = rows8_.quantize(threads, floats(v), rows[v.space] * (v.width / cols), cols);
        quantized_ = v.id;
    }
    return now_;
}

void RopeTable::fill(const Rows& rows) {
    cosines_.resize(size_t(rows.count * half()));
    sines_.resize(size_t(rows.count * half()));
    for (int64_t row = 0; row < rows.count; ++row) {
        for (int64_t i = 0; i < half(); ++i) {
            const double angle = rows.positions[row] * per_position_[size_t(i)];
            cosines_[size_t(row * half() + i)] = float(std::cos(angle) * magnitude_);
            sines_[size_t(row * half() + i)] = float(std::sin(angle) * magnitude_);
        }
    }
}

Program::Program(int threads, Rounding rounding, int64_t floats, std::vector<LayerShape> layers,
                 std::vector<int64_t> state_floats, KvType type, int64_t max_bytes)
    : threads_(threads), layers_(std::move(layers)),
      states_(layers_, std::move(state_floats), type, max_bytes, kernels().pages),
      floats_(floats), pass_(threads_, states_, rounding) {}

int Program::add(std::unique_ptr<Step> step) {
    steps_.push_back(std::move(step));
    return int(steps_.size()) - 1;
}

void Program::check(const AdapterSet& set) const {
    for (const auto& step : steps_) {
        step->check(set);
    }
}

const RopeTable* Program::rope_table(std::vector<double> per_position, double magnitude) {
    tables_.push_back(std::make_unique<RopeTable>(std::move(per_position), magnitude));
    return tables_.back().get();
}

// Makes `rows` (at most PASS_ROWS) the rows of the pass.
void Program::begin(const Rows& rows, const std::vector<const AdapterSet*>& sets) {
    pass_.batch = rows;
    pass_.places.clear();
    pass_.wanted.clear();
    size_t used = 0;
    std::vector<int> segment_of(sets.size(), -1);
    for (int64_t row = 0; row < rows.count; ++row) {
        pass_.places.push_back({rows.sequences[row], rows.positions[row]});
        const int32_t set = rows.sets[row];
        require(set >= -1 && set < int64_t(sets.size()), "no such set of adapters");
        Segment* segment = nullptr;
        if (set >= 0) {
            if (segment_of[size_t(set)] < 0) {
                segment_of[size_t(set)] = int(used++);
                if (pass_.segments.size() < used) {
                    pass_.segments.emplace_back();
                }
                Segment& fresh = pass_.segments[used - 1];
                fresh.set = sets[size_t(set)];
                fresh.rows[ALL].clear();
                fresh.rows[WANTED].clear();
            }
            segment = &pass_.segments[size_t(segment_of[size_t(set)])];
            segment->rows[ALL].push_back(int32_t(row));
        }
        if (rows.wants[row]) {
            if (segment) {
                segment->rows[WANTED].push_back(int32_t(pass_.wanted.size()));
            }
            pass_.wanted.push_back(int32_t(row));
        }
    }
    pass_.segments.resize(used);
    pass_.rows[ALL] = rows.count;
    pass_.rows[WANTED] = int64_t(pass_.wanted.size());
    bind();
    for (const auto& table : tables_) {
        table->fill(rows);
    }
}

// Sequences that go on token by token make the same pass again and again.
void Program::bind() {
    key_.assign({uint64_t(pass_.rows[ALL]), uint64_t(pass_.rows[WANTED]), uint64_t(reinterpret_cast<uintptr_t>(pass_.memory))});
    for (const Segment& segment : pass_.segments) {
        key_.push_back(segment.set->serial());
        for (const std::vector<int32_t>& rows : segment.rows) {
            key_.push_back(rows.size());
            key_.insert(key_.end(), rows.begin(), rows.end());
        }
    }
    if (key_ != last_key_) {
        ++pass_.binding;
        key_.swap(last_key_);
    }
    pass_.linear.last = nullptr;
}

void Program::run(const Rows& rows, const std::vector<const AdapterSet*>& sets, const Value& value, float* output,
                  const Look* look) {
    std::vector<std::pair<int64_t, int64_t>> coming; // sequence, tokens
    for (int64_t row = 0; row < rows.count; ++row) {
        if (coming.empty() || coming.back().first != rows.sequences[row]) {
            coming.push_back({rows.sequences[row], 0});
        }
        ++coming.back().second;
    }
    states_.reserve(coming);
    pass_.memory = memory_.get(floats_ * std::min(rows.count, PASS_ROWS));
    pass_.output = output;
    pass_.look = look;
    for (int64_t first = 0; first < rows.count; first += PASS_ROWS) {
        Rows part = rows;
        part.count = std::min(PASS_ROWS, rows.count - first);
        part.tokens += first;
        part.sequences += first;
        part.positions += first;
        part.wants += first;
        part.sets += first;
        part.hidden += part.hidden ? first * part.hidden_width : 0;
        begin(part, sets);
        pass_.forget_quantized();
        for (const auto& step : steps_) {
            if (pass_.rows[step->space]) {
                step->run(pass_);
            }
        }
        pass_.output += pass_.rows[value.space] * value.width;
    }
    states_.advance(coming);
}

} // namespace lg
