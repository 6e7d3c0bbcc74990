// The engine for Python: `loragraft._native.engine`. Shapes are checked here, once; the kernels trust them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "os/arena.h"
#include "engine/engine_run.h"
#include "kernels.h"

namespace nb = nanobind;

namespace lg {
namespace {

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutMatrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void require(bool ok, const char* what) {
    if (!ok) {
        throw std::invalid_argument(std::string("engine: ") + what);
    }
}

// A weight's rows as they are stored, `experts` matrices on top of each other.
class Weight {
  public:
    Weight(Rows data, int type, int64_t cols, int64_t experts)
        : data_(std::move(data)), type_(type), cols_(cols), experts_(experts) {
        require(type >= 0 && type < TYPE_COUNT, "unknown tensor type");
        const TypeKernels& t = kernels().type[type];
        require(t.dequantize, "a tensor type without kernels");
        const int64_t block = t.block, bytes = t.bytes;
        require(cols > 0 && cols % block == 0, "a row is not a whole number of blocks");
        require(int64_t(data_.shape(1)) == cols / block * bytes, "row bytes do not fit the type");
        require(experts > 0 && int64_t(data_.shape(0)) % experts == 0, "rows do not divide among the experts");
    }
    int64_t rows() const { return int64_t(data_.shape(0)) / experts_; } // of one expert
    int64_t cols() const { return cols_; }
    int64_t experts() const { return experts_; }
    int type() const { return type_; }
    bool has_q8() const { return kernels().engine.linear_q8[type_] != nullptr; }

    Linear task(int64_t expert) const {
        Linear l;
        l.row_bytes = int64_t(data_.shape(1));
        l.weight = data_.data() + expert * rows() * l.row_bytes;
        l.packed = packed_ ? packed_ + expert * expert_bytes_ : nullptr;
        l.type = type_;
        l.rows = rows();
        l.cols = cols_;
        return l;
    }

    // Makes the engine's own layout of the weight, which products with 8-bit activations then read, where its type has
    // one; whether it has. Costs as much memory, in `arena`, as the weight.
    bool pack(ThreadPool& pool, Arena& arena) {
        const PackedKernels& kernel = kernels().engine.packed[type_];
        if (!kernel.pack || packed_) {
            return packed_ != nullptr;
        }
        nb::gil_scoped_release release;
        const int64_t groups = (rows() + PACKED_ROWS - 1) / PACKED_ROWS, bytes = kernel.group_bytes(cols_);
        expert_bytes_ = groups * bytes;
        uint8_t* packed = arena.get(size_t(experts_ * expert_bytes_));
        pool.run(experts_ * groups, [&](int64_t i, int) {
            kernel.pack(task(i / groups), i % groups * PACKED_ROWS, packed + i * bytes);
        });
        packed_ = packed;
        return true;
    }

    // Rows `ids` as floats [len(ids), cols].
    void gather(ThreadPool& pool, const Ids& ids, const OutMatrix& y) const {
        require(y.shape(0) == ids.shape(0) && int64_t(y.shape(1)) == cols_, "gather: wrong shape of y");
        for (size_t i = 0; i < ids.shape(0); ++i) {
            require(ids.data()[i] >= 0 && size_t(ids.data()[i]) < data_.shape(0), "gather: row out of range");
        }
        nb::gil_scoped_release release;
        const int64_t row_bytes = int64_t(data_.shape(1));
        pool.run(int64_t(ids.shape(0)), [&](int64_t i, int) {
            const uint8_t* row = data_.data() + ids.data()[i] * row_bytes;
            kernels().engine.to_floats(type_, row, y.data() + i * cols_, cols_);
        });
    }

  private:
    Rows data_;
    int type_;
    int64_t cols_, experts_;
    const uint8_t* packed_ = nullptr; // in the arena given to `pack`
    int64_t expert_bytes_ = 0;
};

// What is applied after a weight's product; per expert where the weight has experts.
class LinearEnd {
  public:
    // scale [experts] or none; b [experts, rows, rank] or none; bias, dora_scale [experts, rows] or none
    LinearEnd(int64_t experts, int64_t rows, std::optional<Vector> scale,
              std::optional<nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>> b,
              std::optional<Matrix> bias, float arch_scale, std::optional<Matrix> dora_scale)
        : experts_(experts), rows_(rows), arch_scale_(arch_scale) {
        if (scale) {
            require(int64_t(scale->shape(0)) == experts, "epilogue: one scale per expert");
            scale_.assign(scale->data(), scale->data() + experts);
        }
        if (bias) {
            require(int64_t(bias->shape(0)) == experts && int64_t(bias->shape(1)) == rows, "epilogue: bias shape");
            bias_.assign(bias->data(), bias->data() + experts * rows);
        }
        if (dora_scale) {
            require(int64_t(dora_scale->shape(0)) == experts && int64_t(dora_scale->shape(1)) == rows,
                    "epilogue: DoRA scale's shape");
            dora_scale_.assign(dora_scale->data(), dora_scale->data() + experts * rows);
        }
        if (b) {
            require(int64_t(b->shape(0)) == experts && int64_t(b->shape(1)) == rows, "epilogue: B's shape");
            rank_ = int64_t(b->shape(2));
            const int64_t tiles = (rows + 15) / 16;
            b_stride_ = tiles * 16 * rank_;
            b_.assign(size_t(experts * b_stride_), 0.0f);
            for (int64_t e = 0; e < experts; ++e) {
                for (int64_t row = 0; row < rows; ++row) {
                    for (int64_t r = 0; r < rank_; ++r) {
                        b_[size_t(e * b_stride_ + row / 16 * 16 * rank_ + r * 16 + row % 16)] =
                            b->data()[(e * rows + row) * rank_ + r];
                    }
                }
            }
        }
    }
    int64_t experts() const { return experts_; }
    int64_t rows() const { return rows_; }
    int64_t rank() const { return rank_; }

    // The weight's own part.
    void attach(Linear& l, int64_t expert) const {
        l.scale = scale_.empty() ? 1.0f : scale_[size_t(expert)];
        l.bias = bias_.empty() ? nullptr : bias_.data() + expert * rows_;
        l.arch_scale = arch_scale_;
    }
    bool has_adapters() const { return rank_ || !dora_scale_.empty(); }
    LoraTerm term(int64_t expert, const float* xa) const {
        return {b_.empty() ? nullptr : b_.data() + expert * b_stride_, xa, int(rank_)};
    }
    const float* dora_scale(int64_t expert) const {
        return dora_scale_.empty() ? nullptr : dora_scale_.data() + expert * rows_;
    }

  private:
    int64_t experts_, rows_, rank_ = 0, b_stride_ = 0;
    std::vector<float> scale_, b_, dora_scale_, bias_;
    float arch_scale_;
};

// Rows of activations ready for products: floats, and 8-bit codes once asked for.
class Input {
  public:
    void set(Matrix x) {
        x_ = std::move(x);
        now_ = {int64_t(x_.shape(0)), int64_t(x_.shape(1)), x_.data()};
    }
    void quantize(ThreadPool& pool) {
        if (!now_.codes) {
            require(now_.cols % 32 == 0, "8-bit activations need a multiple of 32 columns");
            nb::gil_scoped_release release;
            now_ = quantized_.quantize(pool, now_.x, now_.rows, now_.cols);
        }
    }
    Activations view(bool codes) const {
        Activations a = now_;
        if (!codes) {
            a.codes = nullptr;
        }
        return a;
    }

  private:
    Matrix x_;
    Activations now_;
    QuantizedRows quantized_;
};

// The adapters' part of the epilogue for every row of y.
class RowEnds {
  public:
    RowEnds(const LinearEnd& end, const std::optional<Matrix>& xa, int64_t xa_first, int64_t rows)
        : end_(end), first_(xa_first), terms_(size_t(rows)), ends_(size_t(rows)) {
        if (end.rank()) {
            require(xa && int64_t(xa->shape(0)) == rows && xa_first >= 0
                        && xa_first + end.rank() <= int64_t(xa->shape(1)),
                    "linear: x A^T is missing or of the wrong shape");
            xa_ = xa->data();
            stride_ = int64_t(xa->shape(1));
        }
    }
    void set(int64_t row, int64_t expert) {
        const size_t i = size_t(row);
        terms_[i] = end_.term(expert, xa_ ? xa_ + row * stride_ + first_ : nullptr);
        ends_[i] = {&terms_[i], end_.rank() ? 1 : 0, end_.dora_scale(expert)};
    }
    const RowEnd* data() const { return end_.has_adapters() ? ends_.data() : nullptr; }

  private:
    const LinearEnd& end_;
    const float* xa_ = nullptr;
    int64_t first_, stride_ = 0;
    std::vector<LoraTerm> terms_;
    std::vector<RowEnd> ends_;
};

struct DenseTask {
    Linear linear;
    RowEnds ends;
};

DenseTask dense_task(ThreadPool& pool, const Weight& w, Input& x, const OutMatrix& y, const LinearEnd& end,
                     const std::optional<Matrix>& xa, int64_t xa_first, bool q8) {
    q8 = q8 && w.has_q8();
    if (q8) {
        x.quantize(pool);
    }
    Linear l = w.task(0);
    l.x = x.view(q8);
    l.columns = l.x.rows;
    l.y = y.data();
    require(w.experts() == 1 && l.x.cols == w.cols(), "linear: x does not fit the weight");
    require(int64_t(y.shape(0)) == l.x.rows && int64_t(y.shape(1)) == w.rows(), "linear: wrong shape of y");
    require(end.experts() == 1 && end.rows() == w.rows(), "linear: the epilogue is another weight's");
    end.attach(l, 0);
    RowEnds ends(end, xa, xa_first, l.columns);
    for (int64_t row = 0; row < l.columns; ++row) {
        ends.set(row, 0);
    }
    l.row_end = ends.data(); // stays where it is when the vector is moved
    return {l, std::move(ends)};
}

void linear(ThreadPool& pool, const Weight& w, Input& x, OutMatrix y, const LinearEnd& end, std::optional<Matrix> xa,
            int64_t xa_first, bool q8) {
    const DenseTask task = dense_task(pool, w, x, y, end, xa, xa_first, q8);
    nb::gil_scoped_release release;
    run_linear(pool, task.linear);
}

// Several weights times the same x in one parallel loop: (weight, y, end, xa_first) of each.
void linears(ThreadPool& pool, Input& x,
             const std::vector<std::tuple<const Weight*, OutMatrix, const LinearEnd*, int64_t>>& products,
             std::optional<Matrix> xa, bool q8) {
    std::vector<DenseTask> dense;
    std::vector<Linear> tasks;
    for (const auto& [w, y, end, xa_first] : products) {
        require(w && end, "linears: a weight or epilogue is missing");
        dense.push_back(dense_task(pool, *w, x, y, *end, xa, xa_first, q8));
        tasks.push_back(dense.back().linear);
    }
    nb::gil_scoped_release release;
    run_linears(pool, tasks);
}

// y [tokens * used, rows]: row p is expert ids[p]'s product with x's row p, or p / used if x has one row per token.
void experts_linear(ThreadPool& pool, const Weight& w, Input& x, Ids ids, OutMatrix y, const LinearEnd& end,
                    std::optional<Matrix> xa, bool q8) {
    q8 = q8 && w.has_q8();
    if (q8) {
        x.quantize(pool);
    }
    const Activations a = x.view(q8);
    const int64_t pairs = int64_t(ids.shape(0));
    require(a.rows > 0 && pairs % a.rows == 0 && a.cols == w.cols(), "experts: x does not fit");
    require(int64_t(y.shape(0)) == pairs && int64_t(y.shape(1)) == w.rows(), "experts: wrong shape of y");
    require(end.experts() == w.experts() && end.rows() == w.rows(), "experts: the epilogue is another weight's");
    const int64_t used = pairs / a.rows;
    std::vector<std::vector<int32_t>> x_rows(size_t(w.experts())), y_rows(size_t(w.experts()));
    for (int64_t p = 0; p < pairs; ++p) {
        const int32_t e = ids.data()[p];
        require(e >= 0 && e < w.experts(), "experts: no such expert");
        x_rows[size_t(e)].push_back(int32_t(p / used));
        y_rows[size_t(e)].push_back(int32_t(p));
    }
    RowEnds ends(end, xa, 0, pairs);
    for (int64_t p = 0; p < pairs; ++p) {
        ends.set(p, ids.data()[p]);
    }
    std::vector<Linear> tasks;
    for (int64_t e = 0; e < w.experts(); ++e) {
        if (x_rows[size_t(e)].empty()) {
            continue;
        }
        Linear l = w.task(e);
        l.x = a;
        l.columns = int64_t(x_rows[size_t(e)].size());
        l.x_row = x_rows[size_t(e)].data();
        l.y_row = y_rows[size_t(e)].data();
        l.y = y.data();
        end.attach(l, e);
        l.row_end = ends.data();
        tasks.push_back(l);
    }
    nb::gil_scoped_release release;
    run_linears(pool, tasks);
}

// Shares rows of floats out: chunks of some thousand elements, one alone for a token.
template <typename F> void over_rows(ThreadPool& pool, int64_t rows, int64_t width, F body) {
    const int64_t step = std::max<int64_t>(1, 8192 / std::max<int64_t>(1, width));
    nb::gil_scoped_release release;
    pool.run((rows + step - 1) / step, [&](int64_t chunk, int) {
        for (int64_t r = chunk * step; r < std::min(rows, (chunk + 1) * step); ++r) {
            body(r);
        }
    });
}

// Shares `n` elements out.
template <typename F> void over_elements(ThreadPool& pool, int64_t n, F body) {
    constexpr int64_t STEP = 16384;
    nb::gil_scoped_release release;
    pool.run((n + STEP - 1) / STEP, [&](int64_t c, int) { body(c * STEP, std::min(STEP, n - c * STEP)); });
}

using Unary = void (*)(const float*, float*, int64_t);
using Binary = void (*)(const float*, const float*, float*, int64_t);

template <typename Pick> void def_unary(nb::module_& m, const char* name, Pick pick) {
    m.def(name, [pick](ThreadPool& pool, In x, Out y) {
        require(x.size() == y.size(), "sizes differ");
        const Unary f = pick();
        over_elements(pool, int64_t(x.size()), [&](int64_t at, int64_t n) { f(x.data() + at, y.data() + at, n); });
    });
}

template <typename Pick> void def_binary(nb::module_& m, const char* name, Pick pick) {
    m.def(name, [pick](ThreadPool& pool, In a, In b, Out y) {
        require(a.size() == y.size() && b.size() == y.size(), "sizes differ");
        const Binary f = pick();
        over_elements(pool, int64_t(a.size()),
                      [&](int64_t at, int64_t n) { f(a.data() + at, b.data() + at, y.data() + at, n); });
    });
}

void bind_layers(nb::module_& m) {
    m.def("rms_norm", [](ThreadPool& pool, In x, Vector w, Out y, float eps) {
        const int64_t n = int64_t(w.shape(0));
        require(n > 0 && x.size() == y.size() && x.size() % size_t(n) == 0, "rms_norm: shapes");
        over_rows(pool, int64_t(x.size()) / n, n, [&](int64_t r) {
            kernels().engine.rms_norm(x.data() + r * n, w.data(), y.data() + r * n, n, eps);
        });
    });
    m.def("layer_norm", [](ThreadPool& pool, In x, Vector w, std::optional<Vector> b, Out y, float eps) {
        const int64_t n = int64_t(w.shape(0));
        require(n > 0 && x.size() == y.size() && x.size() % size_t(n) == 0, "layer_norm: shapes");
        require(!b || int64_t(b->shape(0)) == n, "layer_norm: bias");
        over_rows(pool, int64_t(x.size()) / n, n, [&](int64_t r) {
            kernels().engine.layer_norm(x.data() + r * n, w.data(), b ? b->data() : nullptr, y.data() + r * n, n, eps);
        });
    });
    // cosines, sines [tokens, rotary / 2]
    m.def("rope", [](ThreadPool& pool, Matrix x, OutMatrix y, Matrix cosines, Matrix sines, int heads, bool adjacent) {
        const int64_t tokens = int64_t(x.shape(0)), width = int64_t(x.shape(1));
        const int64_t half = int64_t(cosines.shape(1));
        require(heads > 0 && width % heads == 0 && 2 * half <= width / heads, "rope: heads do not fit");
        require(int64_t(cosines.shape(0)) == tokens && int64_t(sines.shape(0)) == tokens
                    && int64_t(sines.shape(1)) == half && y.size() == x.size(),
                "rope: shapes");
        const int64_t hd = width / heads;
        over_rows(pool, tokens, width, [&](int64_t t) {
            for (int h = 0; h < heads; ++h) {
                kernels().engine.rope(x.data() + t * width + h * hd, y.data() + t * width + h * hd, int(hd),
                                      int(2 * half), adjacent, cosines.data() + t * half, sines.data() + t * half);
            }
        });
    });
    // Each row rounded to NVFP4's values in units of its scale; scale 0: the row's own, amax / 2688.
    m.def("round_nvfp4", [](ThreadPool& pool, Matrix x, OutMatrix y, Vector scales) {
        const int64_t n = int64_t(x.shape(1));
        require(y.size() == x.size() && scales.shape(0) == x.shape(0), "round_nvfp4: shapes");
        over_rows(pool, int64_t(x.shape(0)), n, [&](int64_t r) {
            const float* row = x.data() + r * n;
            float unit = scales.data()[r];
            for (int64_t i = 0; scales.data()[r] == 0.0f && i < n; ++i) {
                unit = std::max(unit, std::fabs(row[i]) / 2688.0f);
            }
            kernels().engine.round_nvfp4(row, y.data() + r * n, n, unit > 0.0f ? unit : 1.0f);
        });
    });
    def_unary(m, "silu", [] { return kernels().engine.silu; });
    def_unary(m, "sigmoid", [] { return kernels().engine.sigmoid; });
    def_unary(m, "gelu_tanh", [] { return kernels().engine.gelu_tanh; });
    def_unary(m, "gelu_erf", [] { return kernels().engine.gelu_erf; });
    def_unary(m, "softplus", [] { return kernels().engine.softplus; });
    m.def("soft_cap", [](ThreadPool& pool, In x, Out y, float cap) {
        require(x.size() == y.size() && cap > 0.0f, "soft_cap: sizes differ, or no cap");
        over_elements(pool, int64_t(x.size()),
                      [&](int64_t at, int64_t n) { kernels().engine.soft_cap(x.data() + at, y.data() + at, n, cap); });
    });
    m.def("clamp", [](ThreadPool& pool, In x, Out y, float low, float high) {
        require(x.size() == y.size(), "clamp: sizes differ");
        over_elements(pool, int64_t(x.size()), [&](int64_t at, int64_t n) {
            kernels().engine.clamp(x.data() + at, y.data() + at, n, low, high);
        });
    });
    def_binary(m, "silu_mul", [] { return kernels().engine.silu_mul; });
    def_binary(m, "add", [] { return kernels().engine.add; });
    def_binary(m, "mul", [] { return kernels().engine.mul; });
}

void attention(ThreadPool& pool, LayerCache& cache, Matrix q, Matrix k, Matrix v, OutMatrix y, int64_t past, int heads,
               float scale, int64_t window) {
    CachedAttention task;
    const int64_t width = int64_t(heads) * cache.head_dim(), kv_width = int64_t(cache.kv_heads()) * cache.head_dim();
    task.tokens = int64_t(q.shape(0));
    require(past >= 0 && past <= cache.positions(), "attention: the cache holds fewer tokens");
    require(heads > 0 && heads % cache.kv_heads() == 0 && int64_t(q.shape(1)) == width, "attention: q's shape");
    require(int64_t(k.shape(0)) == task.tokens && int64_t(k.shape(1)) == kv_width, "attention: k's shape");
    require(int64_t(v.shape(0)) == task.tokens && int64_t(v.shape(1)) == kv_width, "attention: v's shape");
    require(y.size() == q.size(), "attention: y's shape");
    task.q = q.data();
    task.y = y.data();
    task.past = past;
    task.heads = heads;
    task.kv_heads = cache.kv_heads();
    task.head_dim = cache.head_dim();
    task.scale = scale;
    task.window = window;
    nb::gil_scoped_release release;
    cache.append(pool, k.data(), v.data(), past, task.tokens);
    cache.attend(pool, task);
}

} // namespace
} // namespace lg

void bind_pool(nb::module_&); // pool.cpp

void bind_engine(nb::module_& parent) {
    using namespace lg;
    nb::module_ m = parent.def_submodule("engine", "Runs a graph's operations; see loragraft/backends/native.py");
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("size", &ThreadPool::size);
    m.def("has_type", [](int type) { return type >= 0 && type < TYPE_COUNT && kernels().type[type].dequantize; });
    nb::class_<Arena>(m, "Arena").def(nb::init<>());
    nb::class_<Weight>(m, "Weight")
        .def(nb::init<Rows, int, int64_t, int64_t>(), nb::arg("data"), nb::arg("kind"), nb::arg("cols"),
             nb::arg("experts") = 1)
        .def_prop_ro("cols", &Weight::cols)
        .def_prop_ro("has_q8", &Weight::has_q8)
        .def("pack", &Weight::pack, nb::keep_alive<1, 3>(), nb::arg("pool"), nb::arg("arena"))
        .def("gather", &Weight::gather);
    nb::class_<LinearEnd>(m, "LinearEnd")
        .def(nb::init<int64_t, int64_t, std::optional<Vector>,
                      std::optional<nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>>,
                      std::optional<Matrix>, float, std::optional<Matrix>>(),
             nb::arg("experts"), nb::arg("rows"), nb::arg("scale").none(), nb::arg("b").none(), nb::arg("bias").none(),
             nb::arg("arch_scale"), nb::arg("dora_scale").none() = nb::none())
        .def_prop_ro("rank", &LinearEnd::rank);
    nb::class_<Input>(m, "Input")
        .def(nb::init<>())
        .def("set", &Input::set)
        .def_prop_ro("rows", [](const Input& x) { return x.view(false).rows; });
    m.def("linear", &linear, nb::arg("pool"), nb::arg("weight"), nb::arg("x"), nb::arg("y"), nb::arg("end"),
          nb::arg("xa").none(), nb::arg("xa_first"), nb::arg("q8"));
    m.def("linears", &linears, nb::arg("pool"), nb::arg("x"), nb::arg("products"), nb::arg("xa").none(), nb::arg("q8"));
    m.def("experts_linear", &experts_linear, nb::arg("pool"), nb::arg("weight"), nb::arg("x"), nb::arg("ids"),
          nb::arg("y"), nb::arg("end"), nb::arg("xa").none(), nb::arg("q8"));
    nb::class_<LayerCache>(m, "LayerCache").def(nb::init<int, int>(), nb::arg("kv_heads"), nb::arg("head_dim"));
    m.def("attention", &attention, nb::arg("pool"), nb::arg("cache"), nb::arg("q"), nb::arg("k"), nb::arg("v"),
          nb::arg("y"), nb::arg("past"), nb::arg("heads"), nb::arg("scale"), nb::arg("window"));
    bind_layers(m);
    bind_pool(m);
}
