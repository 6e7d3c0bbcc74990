// The Python module: one bind_* function per area, each in its own file.
#include <nanobind/nanobind.h>

#include "kernels.h"

namespace nb = nanobind;

void bind_engine(nb::module_&);
void bind_os(nb::module_&);
void bind_quants(nb::module_&);
void bind_stream(nb::module_&);

NB_MODULE(_native, m) {
    m.doc() = "loragraft's native kernels";
    m.def("isa", [] { return lg::kernels().isa; }, "The instruction set whose kernels run.");
    bind_engine(m);
    bind_os(m);
    bind_quants(m);
    bind_stream(m);
}
