// Steps that work on each row, or each element, by itself.
#include "engine/program.h"

#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace lg {

namespace {

void check_alike(const Value& x, const Value& y) {
    require(x.width == y.width && x.space == y.space, "values of different widths");
}

// A step given as a function of the pass.
template <typename Body> class BodyStep : public Step {
  public:
    BodyStep(Space space, Body body) : Step(space), body_(std::move(body)) {}
    void run(Pass& pass) const override { body_(pass); }

  private:
    const Body body_;
};

template <typename Body> std::unique_ptr<Step> step_of(Space space, Body body) {
    return std::make_unique<BodyStep<Body>>(space, std::move(body));
}

} // namespace

std::unique_ptr<Step> rms_norm_step(Value x, Value y, std::vector<float> weight, int64_t n, float eps) {
    check_alike(x, y);
    const int64_t size = int64_t(weight.size());
    require(n > 0 && size > 0 && size % n == 0 && x.width % size == 0, "rms_norm: the weight's size");
    return step_of(x.space, [=, weight = std::move(weight)](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[x.space] * (x.width / n), n, [&](int64_t r) {
            kernels().engine.rms_norm(from + r * n, weight.data() + r * n % size, to + r * n, n, eps);
        });
    });
}

std::unique_ptr<Step> layer_norm_step(Value x, Value y, std::vector<float> weight, std::vector<float> bias, float eps) {
    check_alike(x, y);
    const int64_t n = x.width;
    require(int64_t(weight.size()) == n && (bias.empty() || int64_t(bias.size()) == n), "layer_norm: the weight's size");
    return step_of(x.space, [=, weight = std::move(weight), bias = std::move(bias)](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[x.space], n, [&](int64_t r) {
            kernels().engine.layer_norm(from + r * n, weight.data(), bias.empty() ? nullptr : bias.data(), to + r * n, n,
                                        eps);
        });
    });
}

std::unique_ptr<Step> unary_step(Value x, Value y, Unary f) {
    check_alike(x, y);
    return step_of(x.space, [=](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_elements(pass.threads, pass.rows[x.space] * x.width,
                      [&](int64_t at, int64_t n) { f(from + at, to + at, n); });
    });
}

std::unique_ptr<Step> xielu_step(Value x, Value y, float alpha_p, float alpha_n, float beta, float eps) {
    check_alike(x, y);
    return step_of(x.space, [=](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_elements(pass.threads, pass.rows[x.space] * x.width, [&](int64_t at, int64_t n) {
            for (int64_t i = at; i < at + n; ++i) {
                const float v = from[i];
                to[i] = v > 0.0f ? alpha_p * v * v + beta * v : (std::expm1(std::min(v, eps)) - v) * alpha_n + beta * v;
            }
        });
    });
}

std::unique_ptr<Step> match_rms_step(Value x, Value y, Value to, int64_t n, float least) {
    check_alike(x, to);
    require(n > 0 && x.width % n == 0 && y.width > 0 && y.space == x.space, "match_rms: widths");
    return step_of(x.space, [=](Pass& pass) {
        const float *from = pass.floats(x), *model = pass.floats(y);
        float* out = pass.floats(to);
        over_rows(pass.threads, pass.rows[x.space], x.width + y.width, [&](int64_t r) {
            const EngineKernels& k = kernels().engine;
            const float size = std::sqrt(k.variance(model + r * y.width, y.width, 0.0f));
            for (int64_t at = r * x.width; at < (r + 1) * x.width; at += n) {
                const float own = std::max(k.variance(from + at, n, 0.0f), least);
                const float factor = size / std::sqrt(own);
                for (int64_t i = at; i < at + n; ++i) {
                    out[i] = from[i] * factor;
                }
            }
        });
    });
}

std::unique_ptr<Step> gaussian_top_k_step(Value x, Value to, int64_t n, float deviations) {
    check_alike(x, to);
    require(n > 0 && x.width % n == 0, "gaussian_top_k: widths");
    return step_of(x.space, [=](Pass& pass) {
        const float* from = pass.floats(x);
        float* out = pass.floats(to);
        over_rows(pass.threads, pass.rows[x.space] * (x.width / n), n, [&](int64_t r) {
            const EngineKernels& k = kernels().engine;
            const float mean = k.mean(from + r * n, n);
            const float cut = deviations * std::sqrt(k.variance(from + r * n, n, mean));
            for (int64_t i = r * n; i < (r + 1) * n; ++i) {
                const float above = from[i] - mean - cut;
                out[i] = above < 0.0f ? 0.0f : above; // NaN stays NaN
            }
        });
    });
}

std::unique_ptr<Step> channel_scale_step(Value x, Value y, std::vector<float> weight) {
    check_alike(x, y);
    const int64_t n = int64_t(weight.size());
    require(n > 0 && x.width % n == 0, "channel_scale: the weight's size");
    return step_of(x.space, [=, weight = std::move(weight)](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[x.space] * (x.width / n), n,
                  [&](int64_t r) { kernels().engine.mul(from + r * n, weight.data(), to + r * n, n); });
    });
}

std::unique_ptr<Step> affine_step(Value x, Value y, float factor, float shift) {
    check_alike(x, y);
    return step_of(x.space, [=](Pass& pass) {
        const float* from = pass.floats(x);
        float* to = pass.floats(y);
        over_elements(pass.threads, pass.rows[x.space] * x.width, [&](int64_t at, int64_t n) {
            for (int64_t i = at; i < at + n; ++i) {
                to[i] = from[i] * factor + shift;
            }
        });
    });
}

std::unique_ptr<Step> binary_step(Value a, Value b, Value y, Binary f) {
    check_alike(a, y);
    check_alike(a, b);
    return step_of(a.space, [=](Pass& pass) {
        const float *left = pass.floats(a), *right = pass.floats(b);
        float* to = pass.floats(y);
        over_elements(pass.threads, pass.rows[a.space] * a.width,
                      [&](int64_t at, int64_t n) { f(left + at, right + at, to + at, n); });
    });
}

std::unique_ptr<Step> mul_rows_step(Value a, Value b, Value y) {
    check_alike(a, y);
    require(b.space == a.space && b.width > 0 && a.width % b.width == 0, "values of different widths");
    const int64_t each = a.width / b.width;
    return step_of(a.space, [=](Pass& pass) {
        const float *left = pass.floats(a), *right = pass.floats(b);
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[a.space] * b.width, each, [&](int64_t r) {
            for (int64_t i = r * each; i < (r + 1) * each; ++i) {
                to[i] = left[i] * right[r];
            }
        });
    });
}

std::unique_ptr<Step> split_step(Value x, Value y, int64_t parts, int64_t start) {
    require(parts > 0 && x.width % parts == 0 && y.width % parts == 0 && x.space == y.space, "split: widths");
    const int64_t from_width = x.width / parts, to_width = y.width / parts;
    require(start >= 0 && start + to_width <= from_width, "split: no such range");
    return step_of(x.space, [=](Pass& pass) {
        const float* from = pass.floats(x) + start;
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[x.space] * parts, to_width,
                  [&](int64_t r) { std::copy_n(from + r * from_width, to_width, to + r * to_width); });
    });
}

std::unique_ptr<Step> concat_step(Value a, Value b, Value y, int64_t parts) {
    require(parts > 0 && a.width % parts == 0 && b.width % parts == 0 && y.width == a.width + b.width, "concat: widths");
    require(a.space == y.space && b.space == y.space, "concat: values of different rows");
    const int64_t left = a.width / parts, right = b.width / parts;
    return step_of(a.space, [=](Pass& pass) {
        const float *first = pass.floats(a), *second = pass.floats(b);
        float* to = pass.floats(y);
        over_rows(pass.threads, pass.rows[a.space] * parts, left + right, [&](int64_t r) {
            float* own = std::copy_n(first + r * left, left, to + r * (left + right));
            std::copy_n(second + r * right, right, own);
        });
    });
}

} // namespace lg
