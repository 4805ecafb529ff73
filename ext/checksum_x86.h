/* CRC32C by carry-less multiplication of 64 bytes at a time (AVX-512 with VPCLMULQDQ), after Gopal et al., "Fast CRC
 * Computation for Generic Polynomials Using PCLMULQDQ Instruction" (2009). Built by target attributes, chosen at run
 * time.
 *
 * Four vectors are folded over the data, each product moving a remainder on by as many bits as its constant says; they
 * are joined to one, its four lanes to 128 bits, and the crc instruction takes what those leave.
 */
#ifndef BLOCKPLANE_CHECKSUM_X86_H
#define BLOCKPLANE_CHECKSUM_X86_H

#include <immintrin.h>

#define BP_CLMUL __attribute__((target("avx512f,avx512vl,vpclmulqdq,pclmul,sse4.2")))

enum { BP_FOLD_BYTES = 256 }; /* a step of four vectors */

/* For a step of so many bits: what the lower and the upper half of 128 bits are multiplied by. */
typedef struct {
    uint64_t lower, upper;
} bp_fold_factors;

static bp_fold_factors bp_fold_by_step, bp_fold_by_vector;
/* Moves each lane of a vector to where the last one is, which stays. */
static bp_fold_factors bp_fold_lanes[4];

/* x^n modulo the polynomial, as the register has it, one place up: a product of reflected numbers is one place down. */
static uint64_t bp_power(int n)
{
    uint32_t value = 0x80000000u;
    for (; n; n--)
        value = (value >> 1) ^ (0x82f63b78u & (0u - (value & 1u)));
    return (uint64_t)value << 1;
}

static bp_fold_factors bp_factors(int n_bits)
{
    bp_fold_factors factors = {bp_power(n_bits + 32), bp_power(n_bits - 32)};
    return factors;
}

static void bp_crc_init_folding(void)
{
    bp_fold_by_step = bp_factors(8 * BP_FOLD_BYTES);
    bp_fold_by_vector = bp_factors(512);
    for (int lane = 0; lane < 3; lane++) bp_fold_lanes[lane] = bp_factors(128 * (3 - lane));
}

static int bp_clmul_available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2");
}

BP_CLMUL static inline __m512i bp_factors_everywhere(bp_fold_factors factors)
{
    return _mm512_broadcast_i32x4(_mm_set_epi64x((int64_t)factors.upper, (int64_t)factors.lower));
}

BP_CLMUL static inline __m512i bp_fold(__m512i before, __m512i factors, __m512i data)
{
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(before, factors, 0x00),
                                     _mm512_clmulepi64_epi128(before, factors, 0x11), data, 0x96);
}

/* Take n bytes, a multiple of BP_FOLD_BYTES. */
BP_CLMUL static inline uint32_t bp_clmul_steps(uint32_t crc, const uint8_t *p, size_t n)
{
    const __m512i by_step = bp_factors_everywhere(bp_fold_by_step);
    const __m512i by_vector = bp_factors_everywhere(bp_fold_by_vector);
    const __m512i by_lane = _mm512_loadu_si512(bp_fold_lanes);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)crc)));
    __m512i b = _mm512_loadu_si512(p + 64), c = _mm512_loadu_si512(p + 128), d = _mm512_loadu_si512(p + 192);
    for (size_t at = BP_FOLD_BYTES; at < n; at += BP_FOLD_BYTES) {
        a = bp_fold(a, by_step, _mm512_loadu_si512(p + at));
        b = bp_fold(b, by_step, _mm512_loadu_si512(p + at + 64));
        c = bp_fold(c, by_step, _mm512_loadu_si512(p + at + 128));
        d = bp_fold(d, by_step, _mm512_loadu_si512(p + at + 192));
    }
    d = bp_fold(bp_fold(bp_fold(a, by_vector, b), by_vector, c), by_vector, d);
    /* the factors of the last lane are 0: it comes in as data */
    const __m512i lanes = bp_fold(d, by_lane, _mm512_maskz_mov_epi64(0xc0, d));
    const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
    const __m128i rest = _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    crc = (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(rest));
    return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm_extract_epi64(rest, 1));
}

BP_CLMUL static uint32_t bp_clmul_run(uint32_t crc, const uint8_t *p, size_t n)
{
    const size_t n_folded = n / BP_FOLD_BYTES * BP_FOLD_BYTES;
    if (n_folded) crc = bp_clmul_steps(crc, p, n_folded);
    for (n -= n_folded, p += n_folded; n >= 8; n -= 8, p += 8) crc = (uint32_t)_mm_crc32_u64(crc, bp_load_le64(p));
    for (; n; n--, p++) crc = _mm_crc32_u8(crc, *p);
    return crc;
}

BP_CLMUL static void bp_clmul_blocks(const uint8_t *data, const int64_t *numbers, int64_t first, int64_t n,
                                     uint32_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t crc = bp_clmul_steps(0xffffffffu, data + i * BP_CRC_BLOCK, BP_CRC_BLOCK);
        out[i] = ~(uint32_t)_mm_crc32_u64(crc, (uint64_t)bp_number(numbers, first, i));
    }
}

#endif
