// The engine's parts for Python: `loragraft._native.engine`. Shapes are checked here, once; the kernels trust them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <optional>

#include "bind/arrays.h"
#include "bind/weight.h"
#include "engine/adapters.h"
#include "engine/engine_run.h"
#include "kernels.h"
#include "os/arena.h"

namespace nb = nanobind;

namespace lg {
namespace {

// y [n][rows] = x W^T, for the tests and benches of kernels: with 8-bit activations if `q8` and the type has a kernel for
// them. With `ids` [n] of experts x may have fewer rows: row p of y reads row p / (n / rows of x). The epilogue is what
// is given of it; b [rows][rank], which is kept in 8 bits if `b_q8`, and xa [n][rank] are one adapter, for all experts the
// same.
void multiply(ThreadPool& pool, const BoundWeight& w, Matrix x, OutMatrix y, bool q8, std::optional<Ids> ids, float scale,
              std::optional<Vector> bias, float arch_scale, std::optional<Matrix> b, std::optional<Matrix> xa,
              std::optional<Vector> dora_scale, bool b_q8) {
    const int64_t rows = int64_t(x.shape(0)), n = int64_t(y.shape(0)), out = w.rows();
    require(int64_t(x.shape(1)) == w.cols(), "multiply: x does not fit the weight");
    require(int64_t(y.shape(1)) == out, "multiply: wrong shape of y");
    require(ids ? int64_t(ids->shape(0)) == n && rows > 0 && n % rows == 0 : n == rows && w.experts() == 1,
            "multiply: wrong shape of y");
    require(!bias || int64_t(bias->shape(0)) == out, "multiply: the bias's size");
    require(!dora_scale || int64_t(dora_scale->shape(0)) == out, "multiply: the DoRA scale's size");
    require(bool(b) == bool(xa) && (!b || (int64_t(b->shape(0)) == out && int64_t(xa->shape(0)) == n
                                           && b->shape(1) == xa->shape(1))),
            "multiply: B and x A^T");
    std::vector<std::vector<int32_t>> x_rows(size_t(w.experts())), y_rows(size_t(w.experts()));
    for (int64_t p = 0; p < n; ++p) {
        const int32_t e = ids ? ids->data()[p] : 0;
        require(e >= 0 && e < w.experts(), "multiply: no such expert");
        x_rows[size_t(e)].push_back(int32_t(p / (n / rows)));
        y_rows[size_t(e)].push_back(int32_t(p));
    }
    nb::gil_scoped_release release;
    QuantizedRows rows8;
    q8 = q8 && w.has_q8();
    require(!q8 || w.cols() % 32 == 0, "8-bit activations need a multiple of 32 columns");
    Activations a = q8 ? rows8.quantize(pool, x.data(), rows, w.cols()) : Activations{rows, w.cols(), x.data()};
    Arena arena(ARENA_BLOCK);
    std::optional<PackedB> packed;
    std::vector<LoraTerm> terms(b ? size_t(n) : 0);
    std::vector<float> scaled(xa ? xa->size() : 0);
    std::vector<RowEnd> ends(b || dora_scale ? size_t(n) : 0);
    if (b) {
        packed.emplace(b->data(), 1, out, int64_t(b->shape(1)), b_q8, arena);
    }
    for (int64_t p = 0; p < int64_t(ends.size()); ++p) {
        if (b) {
            const int64_t rank = int64_t(xa->shape(1));
            for (int64_t r = 0; r < rank; ++r) {
                scaled[size_t(p * rank + r)] = xa->data()[p * rank + r] / packed->unit(r);
            }
            terms[size_t(p)] = {packed->of(0), scaled.data() + p * rank, int(rank), packed->form()};
            ends[size_t(p)] = {&terms[size_t(p)], 1, nullptr};
        }
        ends[size_t(p)].dora_scale = dora_scale ? dora_scale->data() : nullptr;
    }
    std::vector<Linear> tasks;
    for (int64_t e = 0; e < w.experts(); ++e) {
        Linear l = w.task(e);
        l.x = a;
        l.columns = int64_t(x_rows[size_t(e)].size());
        l.x_row = ids ? x_rows[size_t(e)].data() : nullptr;
        l.y_row = ids ? y_rows[size_t(e)].data() : nullptr;
        l.y = y.data();
        l.scale = scale;
        l.bias = bias ? bias->data() : nullptr;
        l.arch_scale = arch_scale;
        l.row_end = ends.empty() ? nullptr : ends.data();
        if (l.columns) {
            tasks.push_back(l);
        }
    }
    run_linears(pool, tasks);
}

void gather(const BoundWeight& w, Ids ids, OutMatrix y) {
    require(y.shape(0) == ids.shape(0) && int64_t(y.shape(1)) == w.cols(), "gather: wrong shape of y");
    for (size_t i = 0; i < ids.shape(0); ++i) {
        require(ids.data()[i] >= 0 && ids.data()[i] < w.n_rows(), "gather: row out of range");
    }
    nb::gil_scoped_release release;
    for (size_t i = 0; i < ids.shape(0); ++i) {
        w.row(ids.data()[i], y.data() + int64_t(i) * w.cols());
    }
}

} // namespace
} // namespace lg

void bind_pool(nb::module_& m);
void bind_program(nb::module_& m);

void bind_engine(nb::module_& parent) {
    using namespace lg;
    nb::module_ m = parent.def_submodule("engine", "Runs graphs; see loragraft/backends/cpu");
    nb::class_<ThreadPool>(m, "ThreadPool")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("size", &ThreadPool::size);
    m.def("has_type", [](int type) { return type >= 0 && type < TYPE_COUNT && kernels().type[type].dequantize; });
    nb::class_<Arena>(m, "Arena").def(nb::init<>());
    nb::class_<BoundWeight>(m, "Weight")
        .def(nb::init<Rows8, int, int64_t, int64_t>(), nb::arg("data"), nb::arg("kind"), nb::arg("cols"),
             nb::arg("experts") = 1)
        .def_prop_ro("rows", &BoundWeight::rows)
        .def_prop_ro("cols", &BoundWeight::cols)
        .def_prop_ro("has_q8", &BoundWeight::has_q8)
        .def(
            "pack",
            [](BoundWeight& w, ThreadPool& pool, Arena& arena) {
                nb::gil_scoped_release release;
                return w.pack(pool, arena);
            },
            nb::keep_alive<1, 3>(), nb::arg("pool"), nb::arg("arena"))
        .def(
            "move",
            [](BoundWeight& w, ThreadPool& pool, Arena& arena) {
                nb::gil_scoped_release release;
                w.move(pool, arena);
            },
            nb::keep_alive<1, 3>(), nb::arg("pool"), nb::arg("arena"))
        .def("gather", &gather, nb::arg("ids"), nb::arg("y"));
    m.def("multiply", &multiply, nb::arg("pool"), nb::arg("weight"), nb::arg("x"), nb::arg("y"), nb::arg("q8"),
          nb::arg("ids").none() = nb::none(), nb::arg("scale") = 1.0f, nb::arg("bias").none() = nb::none(),
          nb::arg("arch_scale") = 1.0f, nb::arg("b").none() = nb::none(), nb::arg("xa").none() = nb::none(),
          nb::arg("dora_scale").none() = nb::none(), nb::arg("b_q8") = false);
    bind_pool(m);
    bind_program(m);
}
