// F32, F16 and BF16 rows. Written as plain loops without branches, which the compiler vectorizes; F16 uses the
// conversion instructions where the instruction set has them.
#include "simd/half.h"
#include "kernels.h"

#include <cstring>
#ifdef __F16C__
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lg::LG_ISA {

namespace {

void f32_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    std::memcpy(y, x, size_t(rows * cols) * 4);
}

void f32_dequantize(const uint8_t* y, float* x, int64_t n) {
    std::memcpy(x, y, size_t(n) * 4);
}

#ifdef __F16C__
// The instructions keep a NaN's payload, ggml does not.
inline __m128i halves(__m256 v) {
    const __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    const __m128i magnitude = _mm_and_si128(h, _mm_set1_epi16(0x7FFF));
    const __m128i nan = _mm_cmpgt_epi16(magnitude, _mm_set1_epi16(0x7C00));
    const __m128i plain = _mm_or_si128(_mm_andnot_si128(_mm_set1_epi16(0x7FFF), h), _mm_set1_epi16(0x7E00));
    return _mm_blendv_epi8(h, plain, nan);
}
#elif defined(__aarch64__)
inline uint16x4_t halves(float32x4_t v) {
    const uint16x4_t h = vreinterpret_u16_f16(vcvt_f16_f32(v));
    const uint16x4_t nan = vcgt_u16(vand_u16(h, vdup_n_u16(0x7FFF)), vdup_n_u16(0x7C00));
    return vbsl_u16(nan, vorr_u16(vand_u16(h, vdup_n_u16(0x8000)), vdup_n_u16(0x7E00)), h);
}
#endif

void f16_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    const int64_t n = rows * cols;
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(y + 2 * i), halves(_mm256_loadu_ps(x + i)));
    }
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) {
        const uint16x4_t h = halves(vld1q_f32(x + i));
        std::memcpy(y + 2 * i, &h, 8);
    }
#endif
    for (; i < n; ++i) {
        const uint16_t h = half_from_float(x[i]);
        std::memcpy(y + 2 * i, &h, 2);
    }
}

void f16_dequantize(const uint8_t* y, float* x, int64_t n) {
    int64_t i = 0;
#ifdef __F16C__
    for (; i + 8 <= n; i += 8) {
        _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(y + 2 * i))));
    }
#elif defined(__aarch64__)
    for (; i + 4 <= n; i += 4) {
        uint16x4_t h;
        std::memcpy(&h, y + 2 * i, 8);
        vst1q_f32(x + i, vcvt_f32_f16(vreinterpret_f16_u16(h)));
    }
#endif
    for (; i < n; ++i) {
        uint16_t h;
        std::memcpy(&h, y + 2 * i, 2);
        x[i] = float_from_half(h);
    }
}

void bf16_quantize(const float* x, uint8_t* y, int64_t rows, int64_t cols, const float*) {
    const int64_t n = rows * cols;
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t b = bfloat_from_float(x[i]);
        std::memcpy(y + 2 * i, &b, 2);
    }
}

void bf16_dequantize(const uint8_t* y, float* x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint16_t b;
        std::memcpy(&b, y + 2 * i, 2);
        x[i] = float_from_bfloat(b);
    }
}

} // namespace

void add_floats(KernelTable& t) {
    t.type[F32] = {f32_quantize, f32_dequantize};
    t.type[F16] = {f16_quantize, f16_dequantize};
    t.type[BF16] = {bf16_quantize, bf16_dequantize};
}

} // namespace lg::LG_ISA
