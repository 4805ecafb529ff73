/*
 * Fused set algebra over arrays of 64-bit words, one pass:
 *
 *     out = ((plus[0] OP plus[1] OP ...) & ~minus) & within        OP is | or, for symmetric differences, ^
 *
 * and the bits set in out. Each operand is streamed once; 512 bytes of the result live in registers while the
 * operands pass, so nothing is written but out. Memory is the limit, and the hardware prefetchers keep four and
 * more streams running by themselves (a software prefetch was slower at every distance tried, 256 B to 8 KiB).
 *
 * One table of variants; the scalar one is the oracle for the others and the only one off x86-64.
 */
#ifndef BLOCKPLANE_ALGEBRA_H
#define BLOCKPLANE_ALGEBRA_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    const uint64_t *const *plus; /* n_plus operands, each n_words long */
    int64_t n_plus;              /* >= 0; 0 gives the empty set */
    int exclusive;               /* OP is ^ instead of | */
    const uint64_t *minus;       /* or NULL */
    const uint64_t *within;      /* or NULL */
    uint64_t *out;               /* or NULL: count only; may equal an operand, never overlap one in part */
    int64_t n_words;
    int stream_out;              /* out is larger than the caches and no operand: write around them */
} bp_combine_args;

typedef struct {
    const char *name;
    int (*available)(void);
    int64_t (*combine)(const bp_combine_args *args);
    uint64_t (*read)(const uint64_t *words, int64_t n_words); /* XOR of all words: the plain read baseline */
} bp_algebra_kernel;

static inline int64_t bp_popcount64(uint64_t w) {
    w -= (w >> 1) & 0x5555555555555555u;
    w = (w & 0x3333333333333333u) + ((w >> 2) & 0x3333333333333333u);
    w = (w + (w >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (int64_t)((w * 0x0101010101010101u) >> 56);
}

/* Words [start, stop); every variant uses it for heads and tails. */
static int64_t bp_combine_scalar_range(const bp_combine_args *args, int64_t start, int64_t stop) {
    int64_t count = 0;
    for (int64_t i = start; i < stop; i++) {
        uint64_t word = args->n_plus ? args->plus[0][i] : 0;
        for (int64_t k = 1; k < args->n_plus; k++)
            word = args->exclusive ? word ^ args->plus[k][i] : word | args->plus[k][i];
        if (args->minus) word &= ~args->minus[i];
        if (args->within) word &= args->within[i];
        if (args->out) args->out[i] = word;
        count += bp_popcount64(word);
    }
    return count;
}

static int64_t bp_combine_scalar(const bp_combine_args *args) {
    return bp_combine_scalar_range(args, 0, args->n_words);
}

static uint64_t bp_read_scalar(const uint64_t *words, int64_t n_words) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < n_words; i++) sum ^= words[i];
    return sum;
}

static int bp_always(void) { return 1; }

/* Words before out reaches the alignment that streaming stores need. */
static int64_t bp_head_words(const bp_combine_args *args, uintptr_t align_bytes) {
    if (!args->out || !args->stream_out) return 0;
    int64_t head = (int64_t)((0 - (uintptr_t)args->out) % align_bytes / sizeof(uint64_t));
    return head < args->n_words ? head : args->n_words;
}

#if defined(__x86_64__)
#include "algebra_x86.h"
#endif

/* Best first. */
static const bp_algebra_kernel BP_ALGEBRA_KERNELS[] = {
#if defined(__x86_64__)
    {"avx512", bp_has_avx512, bp_combine_avx512, bp_read_avx512},
    {"avx2", bp_has_avx2, bp_combine_avx2, bp_read_avx2},
#endif
    {"scalar", bp_always, bp_combine_scalar, bp_read_scalar},
};
enum { BP_N_ALGEBRA_KERNELS = sizeof(BP_ALGEBRA_KERNELS) / sizeof(BP_ALGEBRA_KERNELS[0]) };

#endif
