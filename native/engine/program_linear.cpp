// Linear layers that read the same x, dense or by expert. The base's weights are multiplied once for all rows; what
// adapters add, segment by segment of rows that share a set, is handed to the products' epilogue.
#include "engine/program.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lg {

namespace {

// Sorts pairs of token and expert by expert. `ids` [n][used]; pair p reads row x_row(p) of x and writes row p of y.
template <typename XRow> void sort(Routing& r, const int32_t* ids, int64_t pairs, int64_t experts, XRow x_row) {
    r.start.assign(size_t(experts) + 1, 0);
    r.x_row.resize(size_t(pairs));
    r.y_row.resize(size_t(pairs));
    for (int64_t p = 0; p < pairs; ++p) {
        require(ids[p] >= 0 && ids[p] < experts, "experts: no such expert");
        ++r.start[size_t(ids[p]) + 1];
    }
    for (size_t e = 0; e < size_t(experts); ++e) {
        r.start[e + 1] += r.start[e];
    }
    std::vector<int32_t> next(r.start.begin(), r.start.end() - 1);
    for (int64_t p = 0; p < pairs; ++p) {
        const size_t at = size_t(next[size_t(ids[p])]++);
        r.x_row[at] = int32_t(x_row(p));
        r.y_row[at] = int32_t(p);
    }
}

// Gives the task the columns of one expert; whether it has any.
bool give_columns(Linear& l, const Routing& r, int64_t expert) {
    const int32_t first = r.start[size_t(expert)];
    l.columns = r.start[size_t(expert) + 1] - first;
    l.x_row = r.x_row.data() + first;
    l.y_row = r.y_row.data() + first;
    return l.columns > 0;
}

constexpr int64_t KEPT_ROWS = 64; // of a pass for which steps keep what they have bound

class LinearStep : public Step {
  public:
    LinearStep(int number, Value x, const Value* ids, std::vector<LayerSite> layers)
        : Step(layers.front().y.space), number_(number), x_(x), routed_(ids != nullptr), layers_(std::move(layers)) {
        const Weight& first = *layers_.front().weight;
        if (ids) {
            ids_ = *ids;
        }
        used_ = ids ? ids->width : 1;
        cols_ = first.cols();
        experts_ = first.experts();
        require(x.width == cols_ || (ids && x.width == used_ * cols_), "linear: x does not fit the weight");
        require(x.space == space && (!ids || ids->space == space), "linear: all rows and wanted rows are mixed");
        for (const LayerSite& layer : layers_) {
            const Weight& w = *layer.weight;
            require(w.cols() == cols_ && w.experts() == experts_ && (ids || experts_ == 1), "linear: weights differ");
            require(layer.y.width == used_ * w.rows() && layer.y.space == space, "linear: y does not fit the weight");
            require(!w.has_q8() || cols_ % 32 == 0, "8-bit activations need a multiple of 32 columns");
            for (const std::vector<float>* part : {&layer.scale, &layer.input_scale}) {
                require(part->empty() || int64_t(part->size()) == experts_, "linear: one scale for each expert");
            }
            require(layer.bias.empty() || int64_t(layer.bias.size()) == w.n_rows(), "linear: the bias's size");
        }
    }

    void check(const AdapterSet& set) const override {
        const SetStep* own = set.linear_at(number_);
        for (size_t t = 0; own && t < own->terms.size(); ++t) {
            const StepLora& lora = *own->terms[t].lora;
            require(lora.cols == cols_ && lora.experts == experts_, "adapter: A does not fit the layers");
            for (const LayerLora& layer : lora.layers) {
                require(layer.layer >= 0 && size_t(layer.layer) < layers_.size()
                            && layer.rows == layers_[size_t(layer.layer)].weight->rows(),
                        "adapter: B does not fit its layer");
            }
        }
        for (size_t i = 0; own && i < own->dora.size(); ++i) {
            require(own->dora[i].empty()
                        || (i < layers_.size() && int64_t(own->dora[i].size()) == layers_[i].weight->n_rows()),
                    "adapter: the DoRA factors' size");
        }
    }

    void run(Pass& pass) const override {
        const int64_t rows = pass.rows[space];
        const int32_t* ids = routed_ ? pass.ints(ids_) : nullptr;
        const int64_t each = x_.width / cols_; // rows of x of a token
        if (pass.look && *pass.look) {
            (*pass.look)(number_, pass.floats(x_), rows, each, cols_, ids, used_);
        }
        LinearScratch& scratch = pass.linear;
        const size_t segments = pass.segments.size();
        if (scratch.routings.size() < segments + 1) {
            scratch.routings.resize(segments + 1);
        }
        Bound* bound = pass.segments.empty() ? nullptr : &bind(pass, rows, ids, each);
        RowEnd* ends = bound && bound->any ? bound->ends.get(bound->n_ends) : nullptr;
        Routing& all = scratch.routings[segments];
        if (routed_) {
            sort(all, ids, rows * used_, experts_, [&](int64_t p) { return each == 1 ? p / used_ : p; });
        }
        scratch.tasks.clear();
        if (scratch.rounded.size() < layers_.size()) {
            scratch.rounded.resize(layers_.size());
        }
        for (size_t i = 0; i < layers_.size(); ++i) {
            const LayerSite& layer = layers_[i];
            bool by_pair = false;
            const Activations x = input(pass, layer, rows, ids, each, scratch.rounded[i], by_pair);
            for (int64_t e = 0; e < experts_; ++e) {
                Linear l = layer.weight->task(e);
                l.x = x;
                l.columns = rows;
                if (routed_) {
                    if (!give_columns(l, all, e)) {
                        continue;
                    }
                    l.x_row = by_pair ? l.y_row : l.x_row;
                }
                l.y = pass.floats(layer.y);
                l.scale = layer.scale.empty() ? 1.0f : layer.scale[size_t(e)];
                l.bias = layer.bias.empty() ? nullptr : layer.bias.data() + e * l.rows;
                l.arch_scale = layer.arch_scale;
                l.row_end = ends ? ends + int64_t(i) * rows * used_ : nullptr;
                scratch.tasks.push_back(l);
            }
        }
        if (ends) {
            multiply_by_a(pass, *bound, rows * each);
            look_ahead(pass, *bound);
        }
        run_linears(pass.threads, scratch.tasks);
    }

  private:
    // x as the layer's product sees it: float, in 8 bits, or rounded to NVFP4 (a row for each pair, where experts have
    // scales of their own).
    Activations input(Pass& pass, const LayerSite& layer, int64_t rows, const int32_t* ids, int64_t each,
                      Scratch<float>& memory, bool& by_pair) const {
        const float* x = pass.floats(x_);
        const Weight& w = *layer.weight;
        if (pass.rounding == Rounding::Q8 && w.has_q8()) {
            return pass.quantized(x_, cols_);
        }
        Activations a;
        a.rows = rows * each;
        a.cols = cols_;
        a.x = x;
        if (pass.rounding != Rounding::NVFP4 || w.type() != NVFP4) {
            return a;
        }
        by_pair = routed_;
        a.rows = rows * used_;
        float* rounded = memory.get(a.rows * cols_);
        over_rows(pass.threads, a.rows, cols_, [&](int64_t p) {
            const float* row = x + (each == 1 ? p / used_ : p) * cols_;
            float unit = layer.input_scale.empty() ? 0.0f : layer.input_scale[ids ? size_t(ids[p]) : 0];
            if (unit == 0.0f) {
                for (int64_t i = 0; i < cols_; ++i) {
                    const float own = std::fabs(row[i]) / 2688.0f;
                    unit = own > unit || own != own ? own : unit; // a NaN stays
                }
            }
            kernels().engine.round_nvfp4(row, rounded + p * cols_, cols_, unit <= 0.0f ? 1.0f : unit);
        });
        a.x = rounded;
        return a;
    }

    // What the pass's adapters do in this step. A dense step keeps it for the next pass of few rows.
    Bound& bind(Pass& pass, int64_t rows, const int32_t* ids, int64_t each) const {
        const bool keeps = !routed_ && rows <= KEPT_ROWS;
        Bound& bound = keeps ? bound_ : pass.linear.bound;
        if (!keeps || bound.binding != pass.binding) {
            make(pass, bound, rows, ids, each);
            bound.binding = pass.binding;
        }
        if (keeps && bound.any) {
            if (pass.linear.last) {
                pass.linear.last->next = &bound;
            }
            pass.linear.last = &bound;
        }
        return bound;
    }

    void make(Pass& pass, Bound& bound, int64_t rows, const int32_t* ids, int64_t each) const {
        // Pairs of rows and experts that have adapters, those of each stack of A, and numbers of x A^T.
        int64_t pairs = 0, stack_pairs = 0, products = 0;
        bound.n_gamma = bound.n_terms = 0;
        for (const Segment& segment : pass.segments) {
            const SetStep* set = segment.set->linear_at(number_);
            const int64_t own = int64_t(segment.rows[space].size()) * used_;
            pairs += own;
            for (size_t t = 0; set && t < set->terms.size(); ++t) {
                const StepLora& lora = *set->terms[t].lora;
                stack_pairs += own * int64_t(lora.stacks.size());
                bound.n_gamma += lora.rank;
                products += own * lora.rank;
                bound.n_terms += own * int64_t(lora.layers.size());
            }
        }
        bound.products.clear();
        bound.any = bound.n_terms > 0;
        if (!bound.any) {
            return;
        }
        bound.n_ends = int64_t(layers_.size()) * rows * used_;
        RowEnd* ends = bound.ends.get(bound.n_ends);
        std::fill_n(ends, bound.n_ends, RowEnd{});
        Room room{bound.xa.get(products), bound.gamma.get(bound.n_gamma), bound.x_rows.get(pairs), bound.terms.get(bound.n_terms),
                  bound.product_ends.get(stack_pairs)};
        for (size_t s = 0; s < pass.segments.size(); ++s) {
            const Segment& segment = pass.segments[s];
            const SetStep* set = segment.set->linear_at(number_);
            if (!set) {
                continue;
            }
            const std::vector<int32_t>& own = segment.rows[space];
            for (size_t i = 0; i < layers_.size(); ++i) {
                room.term = fill_ends(*set, i, own, ids, room.xa, ends + int64_t(i) * rows * used_, room.term);
            }
            add_products(*set, own, ids, each, pass.linear.routings[s], bound.products, room);
        }
    }

    // What is left of a Bound's memory.
    struct Room {
        float *xa, *gamma;
        int32_t* x_row;
        LoraTerm* term;
        RowEnd* end;
    };

    // x A^T of a segment's adapters, times their scales, as products of its rows `own`.
    void add_products(const SetStep& set, const std::vector<int32_t>& own, const int32_t* ids, int64_t each, Routing& routing,
                      std::vector<Linear>& products, Room& room) const {
        const int64_t pairs = int64_t(own.size()) * used_;
        if (routed_) {
            chosen_.resize(size_t(pairs));
            for (int64_t p = 0; p < pairs; ++p) {
                chosen_[size_t(p)] = ids[own[size_t(p / used_)] * used_ + p % used_];
            }
            sort(routing, chosen_.data(), pairs, experts_, [&](int64_t p) {
                const int64_t row = own[size_t(p / used_)];
                return each == 1 ? row : row * used_ + p % used_;
            });
        }
        const int32_t* x_row = std::copy(own.begin(), own.end(), room.x_row) - own.size();
        room.x_row += own.size();
        for (const SetTerm& t : set.terms) {
            std::copy(t.gamma.begin(), t.gamma.end(), room.gamma);
            for (const StackedA& stack : t.lora->stacks) {
                RowEnd end;
                end.dora_scale = room.gamma + stack.first; // a factor of each row of the product, as this is
                std::fill_n(room.end, pairs, end);
                for (int64_t e = 0; e < experts_; ++e) {
                    Linear l = stack.task(e, cols_);
                    l.columns = pairs;
                    l.x_row = x_row;
                    l.y = room.xa;
                    l.row_end = room.end;
                    if ((!routed_ || give_columns(l, routing, e)) && l.columns) {
                        products.push_back(l);
                    }
                }
                room.xa += pairs * stack.rank;
                room.end += pairs;
            }
            room.gamma += t.gamma.size();
        }
    }

    // x A^T for every adapter of every segment.
    void multiply_by_a(Pass& pass, Bound& bound, int64_t x_rows) const {
        Activations as_it_is;
        as_it_is.rows = x_rows;
        as_it_is.cols = cols_;
        as_it_is.x = pass.floats(x_);
        for (Linear& product : bound.products) {
            product.x = product.packed ? pass.quantized(x_, cols_) : as_it_is;
        }
        run_linears(pass.threads, bound.products, &pass.linear.tasks);
    }

    // Asks for what the step behind this one reads to find its adapters' numbers.
    void look_ahead(const Pass& pass, const Bound& bound) const {
        if (bound.next && bound.next->binding == pass.binding) {
            Bound& next = *bound.next;
            ask_for(next.products.data(), next.products.size());
            ask_for(next.gamma.get(0), next.n_gamma);
            ask_for(next.terms.get(0), next.n_terms);
            ask_for(next.ends.get(0), next.n_ends);
            return;
        }
        for (const Segment& segment : pass.segments) {
            const SetStep* set = segment.set->linear_at(number_);
            for (size_t i = 0; set && i < set->ahead.size(); ++i) {
                __builtin_prefetch(set->ahead[i], 0, 2);
            }
        }
    }
    template <typename T> static void ask_for(const T* start, size_t count) {
        for (size_t at = 0; at < count * sizeof(T); at += 64) {
            __builtin_prefetch(reinterpret_cast<const uint8_t*>(start) + at, 0, 2);
        }
    }

    // The ends of layer `i` for the rows `own` of a segment, whose products with A begin at `xa`; takes terms from `term`
    // on and returns what is left.
    LoraTerm* fill_ends(const SetStep& set, size_t i, const std::vector<int32_t>& own, const int32_t* ids,
                        const float* xa, RowEnd* ends, LoraTerm* term) const {
        const float* dora = i < set.dora.size() && !set.dora[i].empty() ? set.dora[i].data() : nullptr;
        const int64_t pairs = int64_t(own.size()) * used_;
        for (int64_t p = 0; p < pairs; ++p) {
            const int64_t at = own[size_t(p / used_)] * used_ + p % used_;
            const int64_t expert = ids ? ids[at] : 0;
            RowEnd& end = ends[at];
            end.terms = term;
            end.dora_scale = dora ? dora + expert * layers_[i].weight->rows() : nullptr;
            const float* product = xa;
            for (const SetTerm& t : set.terms) {
                for (const SetPart& part : t.parts) {
                    if (size_t(part.layer) == i) {
                        const float* own_xa = product + pairs * part.stack_first + p * part.stack_rank + part.first;
                        *term++ = {part.b + expert * part.stride, own_xa, part.rank, part.form};
                        ++end.n_terms;
                    }
                }
                product += pairs * t.lora->rank;
            }
        }
        return term;
    }

    const int number_;
    const Value x_;
    const bool routed_;
    Value ids_;
    const std::vector<LayerSite> layers_;
    int64_t used_, cols_, experts_;
    mutable std::vector<int32_t> chosen_;
    mutable Bound bound_;
};

} // namespace

std::unique_ptr<Step> linear_step(int step, Value x, const Value* ids, std::vector<LayerSite> layers) {
    require(!layers.empty(), "linear: no layers");
    for (const LayerSite& layer : layers) {
        require(layer.weight, "linear: a weight is missing");
    }
    return std::make_unique<LinearStep>(step, x, ids, std::move(layers));
}

} // namespace lg
