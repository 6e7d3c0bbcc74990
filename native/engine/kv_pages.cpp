#include "engine/kv_pages.h"

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace lg {

namespace {

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
int64_t whole_lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr int MOST = 1024; // elements that are rounded at a time, whole groups
constexpr int Q8_0_BYTES = 34;

// Element d of position `slot` of transposed keys.
template <typename T> T* key_at(uint8_t* keys, int width, int64_t slot) {
    return reinterpret_cast<T*>(keys) + slot / BLOCK_KEYS * width * BLOCK_KEYS + slot % BLOCK_KEYS;
}

void to_halves(const float* x, int n, uint16_t* y) {
    kernels().type[F16].quantize(x, reinterpret_cast<uint8_t*>(y), 1, n, nullptr);
}

// Codes and scales of n elements, filled up with zeros to whole groups. Calls put(first element, codes[32], scale).
template <typename Put> void to_codes(const float* x, int n, Put put) {
    for (int start = 0; start < n; start += MOST) {
        const int here = std::min(MOST, n - start), width = round_up(here, KV_GROUP);
        float part[MOST];
        std::copy_n(x + start, here, part);
        std::fill(part + here, part + width, 0.0f);
        uint8_t blocks[MOST / KV_GROUP * Q8_0_BYTES];
        kernels().type[Q8_0].quantize(part, blocks, 1, width, nullptr);
        for (int at = 0; at < width; at += KV_GROUP) {
            const uint8_t* block = blocks + at / KV_GROUP * Q8_0_BYTES;
            uint16_t scale;
            std::memcpy(&scale, block, 2);
            // The largest of the group says nothing about a NaN in it: x - x is 0 for all numbers and for nothing else.
            float zero = 0.0f;
            for (int i = 0; i < KV_GROUP; ++i) {
                zero += part[at + i] - part[at + i];
            }
            put(start + at, block + 2, zero == 0.0f ? scale : uint16_t(0x7E00));
        }
    }
}

void store_q8_0(const KvLayout& l, uint8_t* head, int64_t slot, const float* k, const float* v) {
    uint8_t* key = key_at<uint8_t>(head, l.key_width, slot);
    uint16_t* key_scale = key_at<uint16_t>(head + l.key_scales, l.key_width / KV_GROUP, slot);
    to_codes(k, l.key_dim, [&](int at, const uint8_t* codes, uint16_t scale) {
        for (int i = 0; i < KV_GROUP; ++i) {
            key[(at + i) * BLOCK_KEYS] = codes[i];
        }
        key_scale[at / KV_GROUP * BLOCK_KEYS] = scale;
    });
    uint8_t* value = head + l.values + slot * l.value_width;
    uint8_t* value_scale = head + l.value_scales + slot * (l.value_width / KV_GROUP) * 2;
    to_codes(v, l.value_dim, [&](int at, const uint8_t* codes, uint16_t scale) {
        std::memcpy(value + at, codes, KV_GROUP);
        std::memcpy(value_scale + at / KV_GROUP * 2, &scale, 2);
    });
}

void store_f16(const KvLayout& l, uint8_t* head, int64_t slot, const float* k, const float* v) {
    uint16_t* key = key_at<uint16_t>(head, l.key_width, slot);
    uint16_t halves[MOST];
    for (int at = 0; at < l.key_dim; at += MOST) {
        const int n = std::min(MOST, l.key_dim - at);
        to_halves(k + at, n, halves);
        for (int d = 0; d < n; ++d) {
            key[(at + d) * BLOCK_KEYS] = halves[d];
        }
    }
    to_halves(v, l.value_dim, reinterpret_cast<uint16_t*>(head + l.values) + slot * l.value_width);
}

void store_f32(const KvLayout& l, uint8_t* head, int64_t slot, const float* k, const float* v) {
    float* key = key_at<float>(head, l.key_width, slot);
    for (int d = 0; d < l.key_dim; ++d) {
        key[d * BLOCK_KEYS] = k[d];
    }
    std::copy_n(v, l.value_dim, reinterpret_cast<float*>(head + l.values) + slot * l.value_width);
}

} // namespace

KvLayout kv_layout(KvType type, int kv_heads, int key_dim, int value_dim) {
    KvLayout l;
    l.type = type;
    l.kv_heads = kv_heads;
    l.key_dim = key_dim;
    l.value_dim = value_dim;
    const bool codes = type == KvType::Q8_0;
    const int64_t size = codes ? 1 : type == KvType::F16 ? 2 : 4;
    l.key_width = codes ? round_up(key_dim, KV_GROUP) : key_dim;
    l.value_width = round_up(value_dim, codes ? KV_GROUP : 16);
    l.key_scales = whole_lines(PAGE_POSITIONS * l.key_width * size);
    l.values = l.key_scales + (codes ? whole_lines(PAGE_POSITIONS * (l.key_width / KV_GROUP) * 2) : 0);
    l.value_scales = l.values + whole_lines(PAGE_POSITIONS * l.value_width * size);
    l.head_bytes = l.value_scales + (codes ? whole_lines(PAGE_POSITIONS * (l.value_width / KV_GROUP) * 2) : 0);
    return l;
}

void store_keys_values(const KvLayout& l, uint8_t* head, int64_t slot, int64_t n, const float* k, int64_t k_stride,
                       const float* v, int64_t v_stride) {
    const auto store = l.type == KvType::F32 ? store_f32 : l.type == KvType::F16 ? store_f16 : store_q8_0;
    for (int64_t i = 0; i < n; ++i) {
        store(l, head, slot + i, k + i * k_stride, v + i * v_stride);
    }
}

} // namespace lg
