// Python: `stream_rows`, one call per chunk of rows; releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "kernels.h"
#include "quant/stream.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using MutableBytes = nb::ndarray<uint8_t, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using DeltaArgument = std::tuple<Matrix, Matrix, float>;

void require(bool holds, const char* what) {
    if (!holds) {
        throw std::invalid_argument(what);
    }
}

size_t bytes_of(const lg::KernelTable& table, int type, int64_t rows, int64_t cols, bool quantizes) {
    require(type >= 0 && type < lg::TYPE_COUNT, "no such type");
    const lg::TypeKernels& t = table.type[type];
    require(t.block > 0 && (quantizes ? t.quantize != nullptr : t.dequantize != nullptr), "no kernel for this type");
    require(cols % t.block == 0, "columns are not a whole number of blocks");
    return size_t(rows) * size_t(cols / t.block) * size_t(t.bytes);
}

std::tuple<int, int64_t, int64_t> stream_rows(Bytes src, int src_type, std::optional<MutableBytes> dst, int dst_type,
                                              int64_t rows, int64_t cols, const std::vector<DeltaArgument>& deltas,
                                              bool through_f16, std::optional<Vector> importance, float multiplier,
                                              float nvfp4_scale, const std::string& isa) {
    require(rows > 0 && cols > 0 && cols <= (int64_t(1) << 40) / rows, "rows and columns out of range");
    const lg::KernelTable& table = isa.empty() ? lg::kernels() : lg::kernels(isa.c_str());
    require(src.size() == bytes_of(table, src_type, rows, cols, false), "source size differs from rows x columns");
    lg::StreamJob job;
    job.kernels = &table;
    job.src = src.data();
    job.src_type = src_type;
    job.dst = dst ? dst->data() : nullptr;
    job.dst_type = dst_type;
    job.rows = rows;
    job.cols = cols;
    job.through_f16 = through_f16;
    job.multiplier = multiplier;
    job.nvfp4_scale = nvfp4_scale;
    if (dst) {
        require(dst->size() == bytes_of(table, dst_type, rows, cols, true), "target size differs from rows x columns");
    }
    for (const auto& [a, b, scale] : deltas) {
        require(a.shape(1) == size_t(cols) && b.shape(0) == size_t(rows) && a.shape(0) == b.shape(1),
                "delta shapes differ from a [rank, columns], b [rows, rank]");
        job.deltas.push_back({a.data(), b.data(), int64_t(a.shape(0)), scale});
    }
    if (importance) {
        require(importance->shape(0) == size_t(cols), "importance is not one number per column");
        job.importance = importance->data();
    }
    nb::gil_scoped_release release;
    const lg::StreamResult result = lg::stream_rows(job);
    return {int(result.fault), result.row, result.col};
}

} // namespace

void bind_stream(nb::module_& m) {
    m.def("stream_rows", &stream_rows, "src"_a, "src_type"_a, "dst"_a.none(), "dst_type"_a, "rows"_a, "cols"_a,
          "deltas"_a, "through_f16"_a, "importance"_a.none(), "multiplier"_a = 1.0f, "nvfp4_scale"_a = 0.0f, "isa"_a = "",
          "Rows of `src` to rows of `dst`: x multiplier, + deltas, rounded, quantized. (fault, row, column); fault 0: none, "
          "1: source not finite, 2: result out of the float type's range, 3: a block's scale out of range.");
}
