// quants/native.py's calls: rows in, rows out, into arrays that the caller has allocated.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.h"

namespace nb = nanobind;

namespace {

using FloatRows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatRowsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using ByteRowsOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

bool supports(int type) {
    return type >= 0 && type < lg::TYPE_COUNT && lg::kernels().type[type].quantize
        && lg::kernels().type[type].dequantize;
}

const lg::TypeKernels& find(int type, const std::string& isa) {
    if (!supports(type)) {
        throw std::invalid_argument("no kernel for tensor type " + std::to_string(type));
    }
    return (isa.empty() ? lg::kernels() : lg::kernels(isa.c_str())).type[type];
}

void check(size_t rows, size_t columns, size_t out_rows, size_t out_bytes, const lg::TypeKernels& kernel) {
    if (rows != out_rows || columns % size_t(kernel.block) || out_bytes != columns / kernel.block * kernel.bytes) {
        throw std::invalid_argument("the arrays' shapes do not fit the tensor type");
    }
}

void quantize(FloatRows x, ByteRowsOut y, int type, std::optional<Floats> importance, const std::string& isa) {
    const lg::TypeKernels& kernel = find(type, isa);
    check(x.shape(0), x.shape(1), y.shape(0), y.shape(1), kernel);
    if (importance && importance->shape(0) != x.shape(1)) {
        throw std::invalid_argument("importance must hold one weight per column");
    }
    nb::gil_scoped_release release;
    kernel.quantize(x.data(), y.data(), int64_t(x.shape(0)), int64_t(x.shape(1)),
                    importance ? importance->data() : nullptr);
}

void quantize_nvfp4(FloatRows x, ByteRowsOut y, float scale, std::optional<Floats> importance, const std::string& isa) {
    check(x.shape(0), x.shape(1), y.shape(0), y.shape(1), find(lg::NVFP4, isa));
    if (importance && importance->shape(0) != x.shape(1)) {
        throw std::invalid_argument("importance must hold one weight per column");
    }
    const lg::KernelTable& kernels = isa.empty() ? lg::kernels() : lg::kernels(isa.c_str());
    nb::gil_scoped_release release;
    kernels.nvfp4(x.data(), y.data(), int64_t(x.shape(0)), int64_t(x.shape(1)), scale,
                  importance ? importance->data() : nullptr);
}

template <class T, int D> using In = nb::ndarray<const T, nb::ndim<D>, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array> auto data_of(const std::optional<Array>& array) { return array ? array->data() : nullptr; }

using Losses = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// See quants/feedback.py. Rows [first, last) of the arrays; rows of one job may be shared out to several threads.
void feedback(FloatRows w, std::optional<FloatRows> units, std::optional<FloatRows> offset_units, Out<int32_t> scales,
              std::optional<Out<int32_t>> offsets, Out<int8_t> rounded, Floats levels, bool uniform,
              std::optional<Floats> scale_table, std::pair<int, int> scale_range, std::optional<Floats> offset_table,
              std::pair<int, int> offset_range, In<float, 2> factor, Floats pivots, In<float, 3> h, In<float, 3> block_factor,
              Floats block_pivots, In<float, 3> block_inverse, bool forward, int step, const std::vector<int32_t>& sweeps,
              float damping, std::optional<Losses> losses, int64_t first, int64_t last, const std::string& isa) {
    const size_t rows = w.shape(0), cols = w.shape(1), subs = scales.shape(1), n = subs ? cols / subs : 0;
    const auto is = [](const auto& array, auto... shape) {
        size_t i = 0;
        return ((array.shape(i++) == size_t(shape)) && ...);
    };
    const bool fits = (n == 16 || n == 32) && subs * n == cols && is(scales, rows, subs) && is(rounded, rows, cols)
        && (!units || is(*units, rows, subs)) && (!offset_units || is(*offset_units, rows, subs))
        && (!offsets || is(*offsets, rows, subs)) && levels.shape(0) >= 2 && is(factor, cols * (subs + 1) / 2, n) && is(pivots, cols)
        && is(h, subs, cols, n) && is(block_factor, subs, n, n) && is(block_pivots, cols) && is(block_inverse, subs, n, n) && (!losses || is(*losses, rows))
        && (!scale_table || (scale_range.first >= 0 && size_t(scale_range.second) < scale_table->shape(0)))
        && (!offset_table || (offset_range.first >= 0 && size_t(offset_range.second) < offset_table->shape(0)))
        && 0 <= first && first <= last && size_t(last) <= rows;
    if (!fits) {
        throw std::invalid_argument("the arrays' shapes do not fit together");
    }
    lg::FeedbackJob job;
    job.rows = int64_t(rows), job.cols = int64_t(cols), job.n = int(n);
    job.levels = levels.data(), job.n_levels = int(levels.shape(0)), job.uniform = uniform;
    job.scale_table = data_of(scale_table), job.scale_low = scale_range.first, job.scale_high = scale_range.second;
    job.affine = offsets.has_value();
    job.offset_table = data_of(offset_table), job.offset_low = offset_range.first, job.offset_high = offset_range.second;
    job.w = w.data(), job.units = data_of(units), job.offset_units = data_of(offset_units);
    job.scales = scales.data(), job.offsets = data_of(offsets), job.rounded = rounded.data();
    job.factor = factor.data(), job.pivots = pivots.data(), job.h = h.data();
    job.block_factor = block_factor.data(), job.block_pivots = block_pivots.data(), job.block_inverse = block_inverse.data();
    job.forward = forward, job.damping = damping, job.losses = data_of(losses), job.step = step, job.sweeps = sweeps.data(), job.n_sweeps = int(sweeps.size());
    const lg::KernelTable& kernels = isa.empty() ? lg::kernels() : lg::kernels(isa.c_str());
    nb::gil_scoped_release release;
    kernels.feedback.round(job, first, last);
}

void dequantize(ByteRows y, FloatRowsOut x, int type, const std::string& isa) {
    const lg::TypeKernels& kernel = find(type, isa);
    check(x.shape(0), x.shape(1), y.shape(0), y.shape(1), kernel);
    nb::gil_scoped_release release;
    kernel.dequantize(y.data(), x.data(), int64_t(x.shape(0) * x.shape(1)));
}

using Strided = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using StridedOut = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

void product(Strided a, Strided b, StridedOut out, bool add, bool upper, const std::string& isa) {
    const bool fits = a.shape(0) == out.shape(0) && a.shape(1) == b.shape(0) && b.shape(1) == out.shape(1)
        && (out.stride(1) == 1 || out.shape(1) == 1 || !out.size());
    if (!fits) {
        throw std::invalid_argument("the arrays' shapes do not fit together");
    }
    lg::ProductJob job;
    job.rows = int64_t(out.shape(0)), job.columns = int64_t(out.shape(1)), job.depth = int64_t(a.shape(1));
    job.a = a.data(), job.a_row = a.stride(0), job.a_column = a.stride(1);
    job.b = b.data(), job.b_row = b.stride(0), job.b_column = b.stride(1);
    job.out = out.data(), job.out_row = out.stride(0), job.add = add, job.upper = upper;
    const lg::KernelTable& kernels = isa.empty() ? lg::kernels() : lg::kernels(isa.c_str());
    nb::gil_scoped_release release;
    kernels.product(job);
}

} // namespace

void bind_quants(nb::module_& m) {
    m.def("supports", supports, "Whether there are kernels for a tensor type (ggml's number).");
    m.def("block", [](int type) { return std::pair(find(type, "").block, find(type, "").bytes); },
          "(weights, bytes) of a block of a tensor type.");
    m.def("isas", lg::isas, "The instruction sets that this machine can run, best first.");
    m.def("quantize", quantize, nb::arg("x"), nb::arg("out"), nb::arg("kind"), nb::arg("importance").none(),
          nb::arg("isa"));
    m.def("quantize_nvfp4", quantize_nvfp4, nb::arg("x"), nb::arg("out"), nb::arg("scale"),
          nb::arg("importance").none(), nb::arg("isa"));
    m.def("feedback_rows", [](const std::string& isa) {
        return (isa.empty() ? lg::kernels() : lg::kernels(isa.c_str())).feedback.rows;
    }, nb::arg("isa"), "How many rows a call of feedback is best given.");
    m.def("feedback", feedback, nb::arg("w"), nb::arg("units").none(), nb::arg("offset_units").none(), nb::arg("scales"),
          nb::arg("offsets").none(), nb::arg("rounded"), nb::arg("levels"), nb::arg("uniform"), nb::arg("scale_table").none(),
          nb::arg("scale_range"), nb::arg("offset_table").none(), nb::arg("offset_range"), nb::arg("factor"), nb::arg("pivots"),
          nb::arg("h"), nb::arg("block_factor"), nb::arg("block_pivots"), nb::arg("block_inverse"), nb::arg("forward"),
          nb::arg("step"), nb::arg("sweeps"), nb::arg("damping"), nb::arg("losses").none(), nb::arg("first"), nb::arg("last"), nb::arg("isa"));
    m.def("product", product, nb::arg("a"), nb::arg("b"), nb::arg("out"), nb::arg("add"), nb::arg("upper"), nb::arg("isa"),
          "out = a b, or out += a b; a and b in any layout. With `upper`, what lies below the diagonal is undefined.");
    m.def("dequantize", dequantize, nb::arg("data"), nb::arg("out"), nb::arg("kind"), nb::arg("isa"));
}
