/* AVX2 and AVX-512 variants of algebra.h; built by target attributes, chosen at run time. */
#ifndef BLOCKPLANE_ALGEBRA_X86_H
#define BLOCKPLANE_ALGEBRA_X86_H

#include <immintrin.h>

#define BP_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vpopcntdq")))
#define BP_AVX2 __attribute__((target("avx2")))
enum { BP_LANES = 8 }; /* vectors in flight: 512 B of the result with AVX-512 */

static int bp_has_avx512(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
}

static int bp_has_avx2(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2");
}

/* ---- AVX-512 with VPOPCNTDQ ---- */

BP_AVX512 static int64_t bp_combine_avx512(const bp_combine_args *args) {
    const int64_t head = args->n_plus ? bp_head_words(args, 64) : args->n_words;
    int64_t i = head, count = bp_combine_scalar_range(args, 0, head);
    __m512i total = _mm512_setzero_si512();
    for (; i + 8 * BP_LANES <= args->n_words; i += 8 * BP_LANES) {
        __m512i v[BP_LANES];
        for (int k = 0; k < BP_LANES; k++) v[k] = _mm512_loadu_si512(args->plus[0] + i + 8 * k);
        for (int64_t p = 1; p < args->n_plus; p++) {
            const uint64_t *words = args->plus[p] + i;
            if (args->exclusive)
                for (int k = 0; k < BP_LANES; k++) v[k] = _mm512_xor_si512(v[k], _mm512_loadu_si512(words + 8 * k));
            else
                for (int k = 0; k < BP_LANES; k++) v[k] = _mm512_or_si512(v[k], _mm512_loadu_si512(words + 8 * k));
        }
        if (args->minus)
            for (int k = 0; k < BP_LANES; k++)
                v[k] = _mm512_andnot_si512(_mm512_loadu_si512(args->minus + i + 8 * k), v[k]);
        if (args->within)
            for (int k = 0; k < BP_LANES; k++)
                v[k] = _mm512_and_si512(v[k], _mm512_loadu_si512(args->within + i + 8 * k));
        if (args->out && args->stream_out)
            for (int k = 0; k < BP_LANES; k++) _mm512_stream_si512((void *)(args->out + i + 8 * k), v[k]);
        else if (args->out)
            for (int k = 0; k < BP_LANES; k++) _mm512_storeu_si512(args->out + i + 8 * k, v[k]);
        for (int k = 0; k < BP_LANES; k++) total = _mm512_add_epi64(total, _mm512_popcnt_epi64(v[k]));
    }
    if (args->stream_out) _mm_sfence();
    count += bp_combine_scalar_range(args, i, args->n_words);
    return count + _mm512_reduce_add_epi64(total);
}

BP_AVX512 static uint64_t bp_read_avx512(const uint64_t *words, int64_t n_words) {
    __m512i v[BP_LANES];
    int64_t i = 0;
    for (int k = 0; k < BP_LANES; k++) v[k] = _mm512_setzero_si512();
    for (; i + 8 * BP_LANES <= n_words; i += 8 * BP_LANES)
        for (int k = 0; k < BP_LANES; k++) v[k] = _mm512_xor_si512(v[k], _mm512_loadu_si512(words + i + 8 * k));
    uint64_t parts[8], sum = bp_read_scalar(words + i, n_words - i);
    for (int k = 1; k < BP_LANES; k++) v[0] = _mm512_xor_si512(v[0], v[k]);
    _mm512_storeu_si512(parts, v[0]);
    return sum ^ bp_read_scalar(parts, 8);
}

/* ---- AVX2: bits counted by nibble look-up (Mula, Kurz, Lemire 2016) ---- */

BP_AVX2 static inline __m256i bp_popcount_avx2(__m256i v) {
    const __m256i nibbles = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3,
                                             1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    __m256i a = _mm256_shuffle_epi8(nibbles, _mm256_and_si256(v, low));
    __m256i b = _mm256_shuffle_epi8(nibbles, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    return _mm256_sad_epu8(_mm256_add_epi8(a, b), _mm256_setzero_si256());
}

#define BP_LOAD256(p) _mm256_loadu_si256((const __m256i *)(p))

BP_AVX2 static int64_t bp_combine_avx2(const bp_combine_args *args) {
    const int64_t head = args->n_plus ? bp_head_words(args, 32) : args->n_words;
    int64_t i = head, count = bp_combine_scalar_range(args, 0, head);
    __m256i total = _mm256_setzero_si256();
    for (; i + 4 * BP_LANES <= args->n_words; i += 4 * BP_LANES) {
        __m256i v[BP_LANES];
        for (int k = 0; k < BP_LANES; k++) v[k] = BP_LOAD256(args->plus[0] + i + 4 * k);
        for (int64_t p = 1; p < args->n_plus; p++) {
            const uint64_t *words = args->plus[p] + i;
            if (args->exclusive)
                for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_xor_si256(v[k], BP_LOAD256(words + 4 * k));
            else
                for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_or_si256(v[k], BP_LOAD256(words + 4 * k));
        }
        if (args->minus)
            for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_andnot_si256(BP_LOAD256(args->minus + i + 4 * k), v[k]);
        if (args->within)
            for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_and_si256(v[k], BP_LOAD256(args->within + i + 4 * k));
        if (args->out && args->stream_out)
            for (int k = 0; k < BP_LANES; k++) _mm256_stream_si256((__m256i *)(args->out + i + 4 * k), v[k]);
        else if (args->out)
            for (int k = 0; k < BP_LANES; k++) _mm256_storeu_si256((__m256i *)(args->out + i + 4 * k), v[k]);
        for (int k = 0; k < BP_LANES; k++) total = _mm256_add_epi64(total, bp_popcount_avx2(v[k]));
    }
    if (args->stream_out) _mm_sfence();
    uint64_t parts[4];
    _mm256_storeu_si256((__m256i *)parts, total);
    count += bp_combine_scalar_range(args, i, args->n_words);
    return count + (int64_t)(parts[0] + parts[1] + parts[2] + parts[3]);
}

BP_AVX2 static uint64_t bp_read_avx2(const uint64_t *words, int64_t n_words) {
    __m256i v[BP_LANES];
    int64_t i = 0;
    for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_setzero_si256();
    for (; i + 4 * BP_LANES <= n_words; i += 4 * BP_LANES)
        for (int k = 0; k < BP_LANES; k++) v[k] = _mm256_xor_si256(v[k], BP_LOAD256(words + i + 4 * k));
    uint64_t parts[4], sum = bp_read_scalar(words + i, n_words - i);
    for (int k = 1; k < BP_LANES; k++) v[0] = _mm256_xor_si256(v[0], v[k]);
    _mm256_storeu_si256((__m256i *)parts, v[0]);
    return sum ^ bp_read_scalar(parts, 4);
}

#undef BP_LOAD256

#endif
