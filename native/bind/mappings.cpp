// Python: formats/mapped.py's guard over mapped files.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "os/mappings.h"

namespace nb = nanobind;

void bind_mappings(nb::module_& m) {
    using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    m.def("guard_mappings", lg::guard_mappings, "From now on a mapped file may become shorter while it is read.");
    m.def("watch_mapping", [](Bytes bytes) { return lg::watch_mapping(bytes.data(), bytes.size()); }, nb::arg("bytes"),
          "A slot for the mapping, or -1.");
    m.def("forget_mapping", lg::forget_mapping, nb::arg("slot"));
    m.def("is_damaged", lg::is_damaged, nb::arg("slot"), "Whether the slot's mapping could not be read somewhere.");
}
