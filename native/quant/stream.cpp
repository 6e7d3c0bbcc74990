// The pass over rows; see stream.h. Works on blocks of rows that fit the second-level cache.
#include "quant/stream.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>

namespace lg {
namespace {

constexpr int64_t BLOCK_WEIGHTS = 32 * 1024; // floats of a block of rows: 128 KiB

constexpr uint32_t F32_EXPONENT = 0x7f800000, F16_EXPONENT = 0x7c00, BF16_EXPONENT = 0x7f80;

bool special_f16(const uint8_t* at) {
    uint16_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return (bits & F16_EXPONENT) == F16_EXPONENT;
}

// The first block of `n` weights that holds one that is not finite, by its first weight; or n.
int64_t first_bad_weight(const KernelTable& k, const TypeFacts& facts, const uint8_t* data, int64_t n) {
    float weights[1024];
    const int64_t step = int64_t(std::size(weights)) / facts.block * facts.block;
    for (int64_t i = 0; i < n; i += step) {
        const int64_t count = std::min(step, n - i);
        k.type[facts.id].dequantize(data + i / facts.block * facts.bytes, weights, count);
        const int64_t bad = k.delta.first_special32(reinterpret_cast<const uint8_t*>(weights), count, F32_EXPONENT);
        if (bad < count) {
            return i + bad / facts.block * facts.block;
        }
    }
    return n;
}

// The first weight (of a quantized type: the first of its block) of `n` whose value or scale is not finite, or n.
int64_t first_bad(const KernelTable& k, int type, const uint8_t* data, int64_t n) {
    switch (type) {
        case F32:
            return k.delta.first_special32(data, n, F32_EXPONENT);
        case F16:
            return k.delta.first_special16(data, n, F16_EXPONENT);
        case BF16:
            return k.delta.first_special16(data, n, BF16_EXPONENT);
        default:
            break;
    }
    const TypeFacts facts = type_facts(type);
    if (facts.first == -2) {
        return first_bad_weight(k, facts, data, n);
    }
    for (int64_t i = 0; facts.first >= 0 && i < n / facts.block; ++i) {
        const uint8_t* block = data + i * facts.bytes;
        if (special_f16(block + facts.first) || (facts.second >= 0 && special_f16(block + facts.second))) {
            return i * facts.block;
        }
    }
    return n;
}

} // namespace

StreamResult stream_rows(const StreamJob& job) {
    const KernelTable& k = *job.kernels;
    const TypeKernels& in = k.type[job.src_type];
    const int64_t cols = job.cols, src_row = cols / in.block * in.bytes;
    const int64_t rows_at_once = std::clamp<int64_t>(BLOCK_WEIGHTS / std::max<int64_t>(cols, 1), 1, job.rows);
    const bool in_place = job.src_type == F32 && job.deltas.empty() && !job.through_f16 && job.multiplier == 1.0f
                          && reinterpret_cast<uintptr_t>(job.src) % alignof(float) == 0;
    std::unique_ptr<float[]> block;
    std::unique_ptr<uint8_t[]> halves;
    if (job.dst && !in_place) {
        block.reset(new float[size_t(rows_at_once * cols)]);
    }
    if (job.dst && job.through_f16) {
        halves.reset(new uint8_t[size_t(rows_at_once * cols) * 2]);
    }
    for (int64_t row = 0; row < job.rows; row += rows_at_once) {
        const int64_t rows = std::min(rows_at_once, job.rows - row), n = rows * cols;
        const auto fault = [&](Fault kind, int64_t weight) {
            return StreamResult{kind, row + weight / cols, weight % cols};
        };
        const uint8_t* src = job.src + row * src_row;
        if (const int64_t bad = first_bad(k, job.src_type, src, n); bad < n) {
            return fault(Fault::input, bad);
        }
        if (!job.dst) {
            continue;
        }
        const float* values = reinterpret_cast<const float*>(src);
        if (!in_place) {
            in.dequantize(src, block.get(), n);
            if (job.multiplier != 1.0f) {
                for (int64_t i = 0; i < n; ++i) {
                    block[size_t(i)] *= job.multiplier;
                }
            }
            for (const Delta& d : job.deltas) {
                k.delta.add(block.get(), d.a, d.b + row * d.rank, rows, cols, d.rank, d.scale);
            }
            if (job.through_f16) {
                k.type[F16].quantize(block.get(), halves.get(), rows, cols, nullptr);
                if (const int64_t bad = first_bad(k, F16, halves.get(), n); bad < n) {
                    return fault(Fault::range, bad);
                }
                k.type[F16].dequantize(halves.get(), block.get(), n);
            }
            values = block.get();
        }
        const TypeKernels& out = k.type[job.dst_type];
        uint8_t* dst = job.dst + row * (cols / out.block * out.bytes);
        if (job.dst_type == NVFP4 && job.nvfp4_scale > 0.0f) {
            k.nvfp4(values, dst, rows, cols, job.nvfp4_scale, job.importance);
        } else {
            out.quantize(values, dst, rows, cols, job.importance);
        }
        if (const int64_t bad = first_bad(k, job.dst_type, dst, n); bad < n) {
            return fault(out.block == 1 ? Fault::range : Fault::scale, bad);
        }
    }
    return {};
}

} // namespace lg
