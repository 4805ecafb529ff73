/* P and Q over columns of a band. Q = sum of 2^d * D_d over GF(2^8) with polynomial 0x11d, by Horner from the last disk:
 * Q = 2 * Q + D_d. Doubling a byte is a shift and, where the top bit falls out, an XOR with 0x1d.
 */
#ifndef BLOCKPLANE_PARITY_H
#define BLOCKPLANE_PARITY_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BP_PARITY_BLOCK 4096

/* One stripe: member d's block at data + d * stride. q may be NULL. */
typedef void (*bp_parity_stripe)(const uint8_t *data, int64_t n_data, int64_t stride, uint8_t *p, uint8_t *q);

typedef struct {
    const char *name;
    int (*available)(void);
    bp_parity_stripe stripe;
} bp_parity_variant;

static inline uint64_t bp_double_word(uint64_t w)
{
    return ((w << 1) & 0xfefefefefefefefeull) ^ (((w >> 7) & 0x0101010101010101ull) * 0x1d);
}

static void bp_scalar_stripe(const uint8_t *data, int64_t n_data, int64_t stride, uint8_t *p, uint8_t *q)
{
    for (size_t at = 0; at < BP_PARITY_BLOCK; at += 8) {
        uint64_t sum = 0, weighted = 0, w;
        for (int64_t d = n_data - 1; d >= 0; d--) {
            memcpy(&w, data + d * stride + at, 8);
            sum ^= w;
            weighted = bp_double_word(weighted) ^ w;
        }
        memcpy(p + at, &sum, 8);
        if (q)
            memcpy(q + at, &weighted, 8);
    }
}

static int bp_parity_always(void) { return 1; }

#if defined(__x86_64__)
/* Two vectors a step: the doublings of one hide behind the other's. */
#define BP_PARITY_VARIANT(PREFIX, TARGET, VECTOR, WIDTH, LOAD, STORE, ZERO, XOR, DOUBLE)                               \
    __attribute__((target(TARGET))) static void PREFIX##_stripe(const uint8_t *data, int64_t n_data, int64_t stride,   \
                                                                uint8_t *p, uint8_t *q)                                \
    {                                                                                                                  \
        for (size_t at = 0; at < BP_PARITY_BLOCK; at += 2 * WIDTH) {                                                   \
            VECTOR p0 = ZERO, p1 = ZERO, q0 = ZERO, q1 = ZERO;                                                         \
            if (q) {                                                                                                   \
                for (int64_t d = n_data - 1; d >= 0; d--) {                                                            \
                    VECTOR a = LOAD((const void *)(data + d * stride + at));                                           \
                    VECTOR b = LOAD((const void *)(data + d * stride + at + WIDTH));                                   \
                    p0 = XOR(p0, a);                                                                                   \
                    p1 = XOR(p1, b);                                                                                   \
                    q0 = XOR(DOUBLE(q0), a);                                                                           \
                    q1 = XOR(DOUBLE(q1), b);                                                                           \
                }                                                                                                      \
                STORE((void *)(q + at), q0);                                                                           \
                STORE((void *)(q + at + WIDTH), q1);                                                                   \
            } else {                                                                                                   \
                for (int64_t d = 0; d < n_data; d++) {                                                                 \
                    p0 = XOR(p0, LOAD((const void *)(data + d * stride + at)));                                        \
                    p1 = XOR(p1, LOAD((const void *)(data + d * stride + at + WIDTH)));                                \
                }                                                                                                      \
            }                                                                                                          \
            STORE((void *)(p + at), p0);                                                                               \
            STORE((void *)(p + at + WIDTH), p1);                                                                       \
        }                                                                                                              \
    }

#define BP_LOAD256(a) _mm256_loadu_si256((const __m256i *)(a))
#define BP_STORE256(a, v) _mm256_storeu_si256((__m256i *)(a), v)
#define BP_DOUBLE256(v)                                                                                                \
    _mm256_xor_si256(_mm256_add_epi8(v, v),                                                                            \
                     _mm256_and_si256(_mm256_cmpgt_epi8(_mm256_setzero_si256(), v), _mm256_set1_epi8(0x1d)))
#define BP_DOUBLE512(v)                                                                                                \
    _mm512_xor_si512(_mm512_add_epi8(v, v), _mm512_maskz_mov_epi8(_mm512_movepi8_mask(v), _mm512_set1_epi8(0x1d)))

BP_PARITY_VARIANT(bp_avx2, "avx2", __m256i, 32, BP_LOAD256, BP_STORE256, _mm256_setzero_si256(), _mm256_xor_si256,
                  BP_DOUBLE256)
BP_PARITY_VARIANT(bp_avx512, "avx512f,avx512bw", __m512i, 64, _mm512_loadu_si512, _mm512_storeu_si512,
                  _mm512_setzero_si512(), _mm512_xor_si512, BP_DOUBLE512)

static int bp_avx2_available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
}

static int bp_avx512_available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
}
#endif

/* Best first; the oracle last. */
static const bp_parity_variant bp_parity_variants[] = {
#if defined(__x86_64__)
    {"avx512", bp_avx512_available, bp_avx512_stripe},
    {"avx2", bp_avx2_available, bp_avx2_stripe},
#endif
    {"scalar", bp_parity_always, bp_scalar_stripe},
};

#define BP_PARITY_N_VARIANTS ((int)(sizeof(bp_parity_variants) / sizeof(bp_parity_variants[0])))

#endif
