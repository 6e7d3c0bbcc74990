// The types with one scale (and offset) per block of 32, 64 or 128 weights, without super-blocks.
//
// Without importance, one block after the other: magnitudes are compared in any order, as a maximum needs none; sums keep
// the reference's. With importance, a block per lane (tile.h). The NumPy twin is quants/legacy.py.
#include "simd/half.h"
#include "kernels.h"
#include "quant/tile.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lg::LG_ISA {

namespace {

template <int D, size_t... K>
inline vf swap_lanes(vf v, std::index_sequence<K...>) {
    return __builtin_shufflevector(v, v, int(K ^ D)...);
}

template <int D = LANES / 2, class Pick>
inline float across(vf v, Pick pick) {
    if constexpr (D == 0) {
        return v[0];
    } else {
        return across<D / 2>(pick(v, swap_lanes<D>(v, std::make_index_sequence<LANES>{})), pick);
    }
}

template <int N>
inline float largest_magnitude(const float* x) {
    vf high = magnitude(load(x));
    for (int i = LANES; i < N; i += LANES) {
        high = max(high, magnitude(load(x + i)));
    }
    return across(high, [](vf a, vf b) { return max(a, b); });
}

struct Range {
    float low, high;
};

template <int N>
inline Range range_of(const float* x) {
    vf low = load(x), high = load(x);
    for (int i = LANES; i < N; i += LANES) {
        low = min(low, load(x + i));
        high = max(high, load(x + i));
    }
    return {across(low, [](vf a, vf b) { return min(a, b); }), across(high, [](vf a, vf b) { return max(a, b); })};
}

// The weight of largest magnitude, with its sign; the first one wins; never -0.
template <int N>
inline float largest_weight(const float* x) {
    const Range r = range_of<N>(x);
    if (-r.low != r.high) {
        return -r.low > r.high ? r.low : r.high;
    }
    const float* first = std::find_if(x, x + N, [&](float v) { return std::fabs(v) == r.high; });
    return first < x + N ? *first + 0.0f : 0.0f;
}

// The scale's inverse; not `finite` when it overflows (a denormal scale). Then every product is infinite or NaN, and the
// reference's casts of those give -2^31 on x86-64, or 0 in a byte.
struct Inverse {
    float value;
    bool finite;
};

inline Inverse inverse(float d) {
    const float id = d != 0.0f ? 1.0f / d : 0.0f;
    return {id, std::fabs(id) <= __FLT_MAX__};
}

// roundf as an integer, for |v| < 2^22: 0.5 - 2^-25 never carries a fraction below one half.
inline vi round_away(vf v) {
    const vf half = floats((bits(v) & int32_t(0x80000000)) | bits(splat(0x1.fffffep-2f)));
    return truncate(v + half);
}

// ---- bit layout of 32 codes of 4 or 5 bits: the fifth bits, code j's in bit j; then code j in the low half of byte j and
// code j + 16 in the high half

constexpr int VECTORS = 32 / LANES;

template <int BITS>
inline void pack_codes(const vi* codes, uint8_t* y) {
    if constexpr (BITS == 5) {
        uint32_t high = 0;
        for (int i = 0; i < VECTORS; ++i) {
            high |= signs(codes[i] << 27) << (i * LANES);
        }
        std::memcpy(y, &high, 4);
        y += 4;
    }
    for (int i = 0; i < VECTORS / 2; ++i) {
        store_bytes(y + i * LANES, (codes[i] & 15) | (codes[i + VECTORS / 2] & 15) << 4);
    }
}

template <int BITS>
inline void unpack_codes(const uint8_t* y, vi* codes) {
    uint32_t high = 0;
    if constexpr (BITS == 5) {
        std::memcpy(&high, y, 4);
        y += 4;
    }
    for (int i = 0; i < VECTORS / 2; ++i) {
        const vi both = load_bytes(y + i * LANES);
        codes[i] = both & 15;
        codes[i + VECTORS / 2] = both >> 4;
    }
    if constexpr (BITS == 5) {
        vi bit;
        for (int k = 0; k < LANES; ++k) {
            bit[k] = k;
        }
        for (int i = 0; i < VECTORS; ++i) {
            codes[i] |= (splat(int32_t(high >> (i * LANES))) >> bit & 1) << 4;
        }
    }
}

// ---- Q1_0: 128 signs and the mean magnitude

void q1_0_block(const float* x, uint8_t* y) {
    float sum = 0.0f;
    for (int j = 0; j < 128; ++j) {
        sum += std::fabs(x[j]);
    }
    put_half(y, sum / 128.0f);
    for (int byte = 0; byte < 16; ++byte) {
        uint8_t signs = 0;
        for (int j = 0; j < 8; ++j) {
            signs |= uint8_t((x[8 * byte + j] >= 0.0f) << j);
        }
        y[2 + byte] = signs;
    }
}

void q1_0_back(const uint8_t* y, float* x) {
    const float d[2] = {-get_half(y), get_half(y)};
    for (int byte = 0; byte < 16; ++byte) {
        for (int j = 0; j < 8; ++j) {
            x[8 * byte + j] = d[(y[2 + byte] >> j) & 1];
        }
    }
}

// ---- Q2_0: 64 codes -1 .. 2 of the largest magnitude

void q2_0_block(const float* x, uint8_t* y) {
    const float d = largest_magnitude<64>(x);
    put_half(y, d);
    const Inverse id = inverse(d);
    if (!id.finite) {
        std::memset(y + 2, 0, 16); // -2^31 is clamped to the lowest code
        return;
    }
    uint8_t codes[64];
    for (int j = 0; j < 64; j += LANES) {
        store_bytes(codes + j, min(max(round_away(load(x + j) * id.value) + 1, splat(0)), splat(3)));
    }
    for (int j = 0; j < 16; ++j) {
        y[2 + j] = uint8_t(codes[4 * j] | codes[4 * j + 1] << 2 | codes[4 * j + 2] << 4 | codes[4 * j + 3] << 6);
    }
}

void q2_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 64; ++j) {
        x[j] = float(int(y[2 + j / 4] >> (2 * (j % 4)) & 3) - 1) * d;
    }
}

// ---- Q8_0

void q8_0_block(const float* x, uint8_t* y) {
    const float d = largest_magnitude<32>(x) / 127.0f;
    put_half(y, d);
    const Inverse id = inverse(d);
    if (!id.finite) {
        std::memset(y + 2, 0, 32);
        return;
    }
    for (int j = 0; j < 32; j += LANES) {
        store_bytes(y + 2 + j, round_away(load(x + j) * id.value));
    }
}

void q8_0_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    for (int j = 0; j < 32; ++j) {
        x[j] = float(int8_t(y[2 + j])) * d;
    }
}

// ---- Q4_0, Q5_0: codes around zero; the largest weight becomes code 0

template <int BITS>
void symmetric_block(const float* x, uint8_t* y) {
    constexpr int HALF = 1 << (BITS - 1);
    const float d = largest_weight<32>(x) / float(-HALF);
    put_half(y, d);
    const Inverse id = inverse(d);
    vi codes[VECTORS] = {};
    for (int i = 0; id.finite && i < VECTORS; ++i) {
        codes[i] = min(truncate(load(x + i * LANES) * id.value + (HALF + 0.5f)), splat(2 * HALF - 1));
    }
    pack_codes<BITS>(codes, y + 2);
}

template <int BITS>
void symmetric_weighted(const float* x, const Searched& s, int block, uint8_t* y) {
    constexpr int HALF = 1 << (BITS - 1);
    put_half(y, s.scale[block]);
    vi codes[VECTORS] = {};
    for (int i = 0; s.inverse[block] != 0.0f && i < VECTORS; ++i) {
        const vi l = nearest_int(s.inverse[block] * load(x + i * LANES));
        codes[i] = min(max(l, splat(-HALF)), splat(HALF - 1)) + HALF;
    }
    pack_codes<BITS>(codes, y + 2);
}

template <int BITS>
void symmetric_back(const uint8_t* y, float* x) {
    const float d = get_half(y);
    vi codes[VECTORS];
    unpack_codes<BITS>(y + 2, codes);
    for (int i = 0; i < VECTORS; ++i) {
        store(x + i * LANES, to_float(codes[i] - (1 << (BITS - 1))) * d);
    }
}

// ---- Q4_1, Q5_1: codes above the block's minimum

template <int BITS>
void affine_block(const float* x, uint8_t* y) {
    constexpr int TOP = (1 << BITS) - 1;
    Range r = range_of<32>(x);
    if (r.low == 0.0f) { // the first zero's sign is stored
        r.low = *std::find(x, x + 32, 0.0f);
    }
    const float d = (r.high - r.low + 0.0f) / float(TOP); // never -0
    put_half(y, d);
    put_half(y + 2, r.low);
    const Inverse id = inverse(d);
    vi codes[VECTORS] = {};
    // An infinite range has the inverse 0; its products are 0, or NaN, which the reference's cast makes 0 too.
    for (int i = 0; id.finite && id.value != 0.0f && i < VECTORS; ++i) {
        codes[i] = min(truncate((load(x + i * LANES) - r.low) * id.value + 0.5f), splat(TOP));
    }
    pack_codes<BITS>(codes, y + 4);
}

template <int BITS>
void affine_weighted(const float* x, const Searched& s, int block, uint8_t* y) {
    constexpr int TOP = (1 << BITS) - 1;
    put_half(y, s.scale[block]);
    put_half(y + 2, -s.low[block]);
    vi codes[VECTORS] = {};
    for (int i = 0; s.inverse[block] != 0.0f && i < VECTORS; ++i) {
        const vi l = nearest_int(s.inverse[block] * (load(x + i * LANES) - s.from[block]));
        codes[i] = min(max(l, splat(0)), splat(TOP));
    }
    pack_codes<BITS>(codes, y + 4);
}

template <int BITS>
void affine_back(const uint8_t* y, float* x) {
    const float d = get_half(y), low = get_half(y + 2);
    vi codes[VECTORS];
    unpack_codes<BITS>(y + 4, codes);
    for (int i = 0; i < VECTORS; ++i) {
        store(x + i * LANES, to_float(codes[i]) * d + low);
    }
}

// ---- rows

template <auto Block, int N, int BYTES>
void each_block(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    const int64_t blocks = rows * cols / N;
    for (int64_t b = 0; b < blocks; ++b) {
        Block(x + b * N, y + b * BYTES);
    }
}

template <auto Block, int N, int BYTES>
void each_block_back(const uint8_t* y, float* x, int64_t n) {
    for (int64_t b = 0; b < n / N; ++b) {
        Block(y + b * BYTES, x + b * N);
    }
}

constexpr int ROWS = 4 * LANES; // whose mean squares are held at a time

// Mean squares of up to ROWS rows, each summed in order, a row per lane.
void mean_squares(const float* x, int64_t rows, int64_t cols, float* out) {
    for (int64_t r = 0; r < rows; r += LANES) {
        const float* row[LANES];
        for (int i = 0; i < LANES; ++i) {
            row[i] = x + std::min(r + i, rows - 1) * cols;
        }
        vf sum = vf{};
        for (int64_t c = 0; c < cols; c += LANES) {
            vf v[LANES];
            for (int i = 0; i < LANES; ++i) {
                v[i] = load(row[i] + c);
            }
            transpose_stage<LANES / 2>(v);
            for (int i = 0; i < LANES; ++i) {
                sum += v[i] * v[i];
            }
        }
        store(out + r, sum / float(cols));
    }
}

// Search a tile of blocks of 32 whose weights' weights are importance * sqrt(mean square of the row + x^2), then write.
template <auto SearchTile, auto Block, int BYTES>
void each_weighted(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    alignas(64) float padded[WEIGHTS], weights[WEIGHTS], squares[ROWS];
    constexpr int GROUP = LANES * G * 32;
    Searched found;
    for (int64_t r = 0; r < rows; r += ROWS) {
        const int64_t some = std::min<int64_t>(ROWS, rows - r);
        mean_squares(x + r * cols, some, cols, squares);
        for (int64_t first = 0; first < some * cols; first += WEIGHTS) {
            const int count = int(std::min<int64_t>(WEIGHTS, some * cols - first));
            const float* tile = x + r * cols + first;
            const int whole = (count + GROUP - 1) / GROUP * GROUP;
            if (count < whole) {
                std::memcpy(padded, tile, size_t(count) * 4);
                std::fill(padded + count, padded + whole, 0.0f);
                tile = padded;
            }
            for (int k = 0; k < whole; k += 32) {
                const int64_t at = std::min(first + k, some * cols - 32);
                const float square = squares[at / cols];
                const float* column = importance + at % cols;
                for (int i = 0; i < 32; i += LANES) {
                    const vf v = load(tile + k + i);
                    store(weights + k + i, load(column + i) * sqrt(square + v * v));
                }
            }
            SearchTile(tile, weights, whole, found);
            for (int b = 0; b < count / 32; ++b) {
                Block(tile + b * 32, found, b, y + ((r * cols + first) / 32 + b) * BYTES);
            }
        }
    }
}

template <int BITS>
void search_symmetric_blocks(const float* x, const float* w, int n, Searched& out) {
    search_symmetric_tile<32, 1 << (BITS - 1)>(x, w, n, out);
}

template <int BITS>
void search_affine_blocks(const float* x, const float* w, int n, Searched& out) {
    constexpr int TOP = (1 << BITS) - 1;
    static constexpr AffineSearch WEIGHTED = affine_search(TOP, -0.9f, 0.05f, 37);
    search_affine_tile<32, TOP, false>(x, w, n, WEIGHTED, out);
}

template <auto Plain, auto Weighted>
void choose(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float* importance) {
    (importance ? Weighted : Plain)(x, y, rows, cols, importance);
}

template <auto Quantize, auto Back, int N, int BYTES>
constexpr TypeKernels plain() {
    return {each_block<Quantize, N, BYTES>, each_block_back<Back, N, BYTES>};
}

template <int BITS, int BYTES>
constexpr TypeKernels symmetric() {
    return {choose<each_block<symmetric_block<BITS>, 32, BYTES>,
                   each_weighted<search_symmetric_blocks<BITS>, symmetric_weighted<BITS>, BYTES>>,
            each_block_back<symmetric_back<BITS>, 32, BYTES>};
}

template <int BITS, int BYTES>
constexpr TypeKernels affine() {
    return {choose<each_block<affine_block<BITS>, 32, BYTES>,
                   each_weighted<search_affine_blocks<BITS>, affine_weighted<BITS>, BYTES>>,
            each_block_back<affine_back<BITS>, 32, BYTES>};
}

} // namespace

void add_legacy(KernelTable& t) {
    t.type[Q1_0] = plain<q1_0_block, q1_0_back, block_of(Q1_0), bytes_of(Q1_0)>();
    t.type[Q2_0] = plain<q2_0_block, q2_0_back, block_of(Q2_0), bytes_of(Q2_0)>();
    t.type[Q4_0] = symmetric<4, bytes_of(Q4_0)>();
    t.type[Q4_1] = affine<4, bytes_of(Q4_1)>();
    t.type[Q5_0] = symmetric<5, bytes_of(Q5_0)>();
    t.type[Q5_1] = affine<5, bytes_of(Q5_1)>();
    t.type[Q8_0] = plain<q8_0_block, q8_0_back, block_of(Q8_0), bytes_of(Q8_0)>();
}

} // namespace lg::LG_ISA
