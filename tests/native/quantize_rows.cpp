// The quantization kernels of the instruction set named on the command line, behind standard input and output, so that
// they can run under an emulator.
// For every request, five int64 (type, rows, columns, whether there is importance, backwards), then floats (rows *
// columns, then columns of importance) or, backwards, rows of the type; answers with the rows, or the floats.
#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

template <class T>
void read(std::vector<T>& out) {
    if (std::fread(out.data(), sizeof(T), out.size(), stdin) != out.size()) {
        std::exit(1);
    }
}

template <class T>
void write(const std::vector<T>& out) {
    std::fwrite(out.data(), sizeof(T), out.size(), stdout);
    std::fflush(stdout);
}

} // namespace

int main(int, char** arguments) {
    const lg::KernelTable& kernels = lg::kernels(arguments[1]);
    std::vector<int64_t> request(5);
    while (std::fread(request.data(), 8, 5, stdin) == 5) {
        const int64_t type = request[0], rows = request[1], cols = request[2], weighted = request[3], back = request[4];
        const lg::TypeKernels& kernel = kernels.type[type];
        std::vector<float> x(size_t(rows * cols)), importance(weighted ? size_t(cols) : 0);
        std::vector<uint8_t> y(size_t(rows * (cols / kernel.block) * kernel.bytes));
        if (back) {
            read(y);
            kernel.dequantize(y.data(), x.data(), rows * cols);
            write(x);
        } else {
            read(x);
            read(importance);
            kernel.quantize(x.data(), y.data(), rows, cols, weighted ? importance.data() : nullptr);
            write(y);
        }
    }
}
