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

void dequantize(ByteRows y, FloatRowsOut x, int type, const std::string& isa) {
    const lg::TypeKernels& kernel = find(type, isa);
    check(x.shape(0), x.shape(1), y.shape(0), y.shape(1), kernel);
    nb::gil_scoped_release release;
    kernel.dequantize(y.data(), x.data(), int64_t(x.shape(0) * x.shape(1)));
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
    m.def("dequantize", dequantize, nb::arg("data"), nb::arg("out"), nb::arg("kind"), nb::arg("isa"));
}
