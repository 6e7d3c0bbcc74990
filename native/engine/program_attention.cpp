// Rotary embedding by the rows' positions, and attention over what their sequences hold.
#include "engine/program.h"

#include "kernels.h"

namespace lg {

namespace {

class RopeStep : public Step {
  public:
    RopeStep(Value x, Value y, const RopeTable* table, int heads, bool adjacent)
        : Step(x.space), x_(x), y_(y), table_(*table), heads_(heads), adjacent_(adjacent) {
        require(x.space == ALL && y.space == ALL && x.width == y.width, "rope: values do not fit");
        require(heads > 0 && x.width % heads == 0 && 2 * table->half() <= x.width / heads, "rope: heads do not fit");
    }
    void run(Pass& pass) const override {
        const int64_t width = x_.width, head = width / heads_;
        const float* x = pass.floats(x_);
        float* y = pass.floats(y_);
        over_rows(pass.threads, pass.rows[ALL], width, [&](int64_t row) {
            for (int64_t at = row * width; at < (row + 1) * width; at += head) {
                kernels().engine.rope(x + at, y + at, int(head), int(2 * table_.half()), adjacent_, table_.cosines(row),
                                      table_.sines(row));
            }
        });
    }

  private:
    const Value x_, y_;
    const RopeTable& table_;
    const int heads_;
    const bool adjacent_;
};

class AttentionStep : public Step {
  public:
    AttentionStep(Value q, Value k, Value v, Value y, int layer, AttentionTask task, std::vector<float> sinks,
                  std::vector<float> slopes)
        : Step(ALL), q_(q), k_(k), v_(v), y_(y), layer_(layer), task_(task), sinks_(std::move(sinks)),
          slopes_(std::move(slopes)) {
        for (const Value* value : {&q, &k, &v, &y}) {
            require(value->space == ALL, "attention: works on all rows");
        }
        require(sinks_.empty() || int(sinks_.size()) == task.heads, "attention: one sink for each head");
        require(slopes_.empty() || int(slopes_.size()) == task.heads, "attention: one slope for each head");
        require(slopes_.empty() || task.soft_cap == 0.0f, "attention: slopes and a cap");
        require(task.chunk >= 0, "attention: chunk");
    }
    void run(Pass& pass) const override {
        AttentionTask task = task_;
        task.q = pass.floats(q_);
        task.y = pass.floats(y_);
        task.sinks = sinks_.empty() ? nullptr : sinks_.data();
        task.slopes = slopes_.empty() ? nullptr : slopes_.data();
        pass.states.append(pass.threads, layer_, pass.places, pass.floats(k_), pass.floats(v_));
        pass.states.attend(pass.threads, layer_, task, pass.places);
    }

  private:
    const Value q_, k_, v_, y_;
    const int layer_;
    const AttentionTask task_;
    const std::vector<float> sinks_, slopes_;
};

} // namespace

std::unique_ptr<Step> rope_step(Value x, Value y, const RopeTable* table, int heads, bool adjacent) {
    return std::make_unique<RopeStep>(x, y, table, heads, adjacent);
}

std::unique_ptr<Step> attention_step(Value q, Value k, Value v, Value y, int layer, int heads, float scale,
                                     float soft_cap, std::vector<float> sinks,
                                     std::vector<float> slopes, int64_t chunk) {
    AttentionTask task;
    task.heads = heads;
    task.scale = scale;
    task.soft_cap = soft_cap;
    task.chunk = chunk;
    return std::make_unique<AttentionStep>(q, k, v, y, layer, task, std::move(sinks), std::move(slopes));
}

} // namespace lg
