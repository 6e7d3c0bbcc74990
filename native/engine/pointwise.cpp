// The engine's small operations: norms, activation functions, sums, rotary embedding.
#include "kernels.h"
#include "simd/simd.h"

#include <algorithm>
#include <cmath>

namespace lg::LG_ISA {

namespace {

// y[i] = f(x[i]) by vectors; the tail is padded into one more.
template <typename F> inline void each(const float* x, float* y, int64_t n, F f) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        store(y + i, f(load(x + i)));
    }
    if (i < n) {
        float part[LANES] = {};
        std::memcpy(part, x + i, size_t(n - i) * 4);
        store(part, f(load(part)));
        std::memcpy(y + i, part, size_t(n - i) * 4);
    }
}

template <typename F> inline void each(const float* a, const float* b, float* y, int64_t n, F f) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        store(y + i, f(load(a + i), load(b + i)));
    }
    if (i < n) {
        float pa[LANES] = {}, pb[LANES] = {};
        std::memcpy(pa, a + i, size_t(n - i) * 4);
        std::memcpy(pb, b + i, size_t(n - i) * 4);
        store(pa, f(load(pa), load(pb)));
        std::memcpy(y + i, pa, size_t(n - i) * 4);
    }
}

inline vf sigmoid_of(vf x) { return 1.0f / (1.0f + exp(-x)); }

// tanh(z) = 1 - 2 / (1 + e^2z)
inline vf gelu_of(vf x) {
    const vf z = x * 0.7978845608f * (1.0f + 0.044715f * x * x);
    return x * (1.0f - 1.0f / (1.0f + exp(z + z)));
}

void silu(const float* x, float* y, int64_t n) {
    each(x, y, n, [](vf v) { return v * sigmoid_of(v); });
}
void silu_mul(const float* gate, const float* up, float* y, int64_t n) {
    each(gate, up, y, n, [](vf g, vf u) { return g * sigmoid_of(g) * u; });
}
void sigmoid(const float* x, float* y, int64_t n) {
    each(x, y, n, [](vf v) { return sigmoid_of(v); });
}
void gelu_tanh(const float* x, float* y, int64_t n) {
    each(x, y, n, [](vf v) { return gelu_of(v); });
}
void gelu_erf(const float* x, float* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
    }
}
// ln(1 + e^x), without overflow
void softplus(const float* x, float* y, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        y[i] = std::max(x[i], 0.0f) + std::log1p(std::exp(-std::fabs(x[i])));
    }
}
// cap * tanh(x / cap)
void soft_cap(const float* x, float* y, int64_t n, float cap) {
    each(x, y, n, [cap](vf v) {
        const vf z = v / cap;
        return cap * (1.0f - 2.0f / (1.0f + exp(z + z)));
    });
}
void clamp(const float* x, float* y, int64_t n, float low, float high) {
    const vf least = splat(low), most = splat(high);
    each(x, y, n, [least, most](vf v) { // NaN stays NaN
        v = v < least ? least : v;
        return v > most ? most : v;
    });
}
void add(const float* a, const float* b, float* y, int64_t n) {
    each(a, b, y, n, [](vf v, vf w) { return v + w; });
}
void mul(const float* a, const float* b, float* y, int64_t n) {
    each(a, b, y, n, [](vf v, vf w) { return v * w; });
}

// The sum of x - mean or of its squares, in four accumulators.
inline float sum_of(const float* x, int64_t n, float mean, bool squares) {
    vf acc[4] = {};
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES) {
        for (int j = 0; j < 4; ++j) {
            const vf v = load(x + i + j * LANES) - mean;
            acc[j] = squares ? fma(v, v, acc[j]) : acc[j] + v;
        }
    }
    float rest = 0.0f;
    for (; i < n; ++i) {
        const float v = x[i] - mean;
        rest += squares ? v * v : v;
    }
    return sum((acc[0] + acc[1]) + (acc[2] + acc[3])) + rest;
}

float mean_of(const float* x, int64_t n) { return sum_of(x, n, 0.0f, false) / float(n); }
float variance_of(const float* x, int64_t n, float mean) { return sum_of(x, n, mean, true) / float(n); }

void rms_norm(const float* x, const float* w, float* y, int64_t n, float eps) {
    const float inverse = 1.0f / std::sqrt(sum_of(x, n, 0.0f, true) / float(n) + eps);
    each(x, w, y, n, [inverse](vf v, vf g) { return v * inverse * g; });
}

void layer_norm(const float* x, const float* w, const float* b, float* y, int64_t n, float eps) {
    const float mean = sum_of(x, n, 0.0f, false) / float(n);
    const float inverse = 1.0f / std::sqrt(sum_of(x, n, mean, true) / float(n) + eps);
    each(x, w, y, n, [mean, inverse](vf v, vf g) { return (v - mean) * inverse * g; });
    if (b) {
        add(y, b, y, n);
    }
}

void rope(const float* x, float* y, int head_dim, int rotary, bool adjacent, const float* cosines,
          const float* sines) {
    const int half = rotary / 2;
    for (int i = 0; i < half; ++i) {
        const int first = adjacent ? 2 * i : i;
        const int second = adjacent ? 2 * i + 1 : i + half;
        const float a = x[first], b = x[second];
        y[first] = a * cosines[i] - b * sines[i];
        y[second] = a * sines[i] + b * cosines[i];
    }
    for (int i = rotary; i < head_dim; ++i) {
        y[i] = x[i];
    }
}

} // namespace

void add_pointwise(KernelTable& k) {
    k.engine.rms_norm = rms_norm;
    k.engine.layer_norm = layer_norm;
    k.engine.mean = mean_of;
    k.engine.variance = variance_of;
    k.engine.silu = silu;
    k.engine.silu_mul = silu_mul;
    k.engine.sigmoid = sigmoid;
    k.engine.gelu_tanh = gelu_tanh;
    k.engine.gelu_erf = gelu_erf;
    k.engine.softplus = softplus;
    k.engine.soft_cap = soft_cap;
    k.engine.clamp = clamp;
    k.engine.add = add;
    k.engine.mul = mul;
    k.engine.rope = rope;
}

} // namespace lg::LG_ISA
