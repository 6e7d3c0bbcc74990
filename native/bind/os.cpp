// Python: what loragraft/system/ asks of the operating system and Python does not offer.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "os/files.h"
#include "os/mappings.h"

namespace nb = nanobind;
using namespace nb::literals;

void bind_os(nb::module_& m) {
    using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
    m.def("guard_mappings", lg::guard_mappings, "From now on a mapped file may become shorter while it is read.");
    m.def("watch_mapping", [](Bytes bytes) { return lg::watch_mapping(bytes.data(), bytes.size()); }, nb::arg("bytes"),
          "A slot for the mapping, or -1.");
    m.def("forget_mapping", lg::forget_mapping, nb::arg("slot"));
    m.def("is_damaged", lg::is_damaged, nb::arg("slot"), "Whether the slot's mapping could not be read somewhere.");
    using Released = nb::call_guard<nb::gil_scoped_release>;
    m.def("start_writeback", &lg::start_writeback, "fd"_a, "offset"_a, "length"_a, Released(),
          "Have the system begin to write bytes [offset, offset + length) of a file to the disk.");
    m.def("reserve", &lg::reserve, "fd"_a, "size"_a, Released(),
          "Have the file system set aside the first `size` bytes of a file; errno, or 0.");
}
