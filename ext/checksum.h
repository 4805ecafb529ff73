/* CRC32C (Castagnoli, reflected 0x82f63b78) over 4,096-byte blocks, each continued over its number.
 *
 * One table of variants; the scalar one is the oracle. Blocks are independent, so one with a crc instruction keeps
 * three of them in flight: it has a latency of three cycles and a throughput of one. In a longer run three stretches of
 * a block's size are, and joined.
 */
#ifndef BLOCKPLANE_CHECKSUM_H
#define BLOCKPLANE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

#define BP_CRC_BLOCK 4096

/* Raw register in, raw register out: callers invert. */
typedef uint32_t (*bp_crc_run)(uint32_t crc, const uint8_t *data, size_t n_bytes);
/* numbers == NULL: consecutive from `first`. */
typedef void (*bp_crc_blocks)(const uint8_t *data, const int64_t *numbers, int64_t first, int64_t n, uint32_t *out);

typedef struct {
    const char *name;
    int (*available)(void);
    bp_crc_run run;
    bp_crc_blocks blocks;
} bp_crc_variant;

static uint32_t bp_crc_table[8][256];

static void bp_crc_init(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
        bp_crc_table[0][i] = crc;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            bp_crc_table[k][i] = (bp_crc_table[k - 1][i] >> 8) ^ bp_crc_table[0][bp_crc_table[k - 1][i] & 0xff];
}

/* What joining CRCs takes: CRC(A B) = Z(CRC(A)) ^ CRC(B), Z being the step of the register over as many zero bytes as B
 * has. bp_crc_back takes one zero byte back: the highest byte of what a step leaves says which entry it took. */
static uint32_t bp_crc_over_block[4][256];
static uint8_t bp_crc_entry_of[256];

static inline uint32_t bp_crc_skip_block(uint32_t crc)
{
    return bp_crc_over_block[0][crc & 0xff] ^ bp_crc_over_block[1][crc >> 8 & 0xff] ^
           bp_crc_over_block[2][crc >> 16 & 0xff] ^ bp_crc_over_block[3][crc >> 24];
}

static inline uint32_t bp_crc_back(uint32_t crc)
{
    uint8_t entry = bp_crc_entry_of[crc >> 24];
    return (crc ^ bp_crc_table[0][entry]) << 8 | entry;
}

static void bp_crc_init_joining(void)
{
    for (uint32_t i = 0; i < 256; i++)
        bp_crc_entry_of[bp_crc_table[0][i] >> 24] = (uint8_t)i;
    for (int byte = 0; byte < 4; byte++) {
        uint32_t *row = bp_crc_over_block[byte];
        row[0] = 0;
        for (uint32_t bit = 1; bit < 256; bit <<= 1) {
            uint32_t crc = bit << 8 * byte;
            for (int i = 0; i < BP_CRC_BLOCK; i++)
                crc = (crc >> 8) ^ bp_crc_table[0][crc & 0xff];
            for (uint32_t below = 0; below < bit; below++) /* the step is linear */
                row[bit | below] = crc ^ row[below];
        }
    }
}

static inline uint64_t bp_load_le64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static inline int64_t bp_number(const int64_t *numbers, int64_t first, int64_t i)
{
    return numbers ? numbers[i] : first + i;
}

static inline uint32_t bp_table_word(uint32_t crc, uint64_t word)
{
    word ^= crc;
    return bp_crc_table[7][word & 0xff] ^ bp_crc_table[6][(word >> 8) & 0xff] ^ bp_crc_table[5][(word >> 16) & 0xff] ^
           bp_crc_table[4][(word >> 24) & 0xff] ^ bp_crc_table[3][(word >> 32) & 0xff] ^
           bp_crc_table[2][(word >> 40) & 0xff] ^ bp_crc_table[1][(word >> 48) & 0xff] ^ bp_crc_table[0][word >> 56];
}

static uint32_t bp_table_run(uint32_t crc, const uint8_t *p, size_t n)
{
    for (; n >= 8; n -= 8, p += 8)
        crc = bp_table_word(crc, bp_load_le64(p));
    for (; n; n--, p++)
        crc = (crc >> 8) ^ bp_crc_table[0][(crc ^ *p) & 0xff];
    return crc;
}

static void bp_table_blocks(const uint8_t *data, const int64_t *numbers, int64_t first, int64_t n, uint32_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t crc = bp_table_run(0xffffffffu, data + i * BP_CRC_BLOCK, BP_CRC_BLOCK);
        out[i] = ~bp_table_word(crc, (uint64_t)bp_number(numbers, first, i));
    }
}

static int bp_always(void) { return 1; }

/* The body of a variant with a 64-bit crc instruction WORD(crc, u64) and BYTE(crc, u8). */
#define BP_CRC_VARIANT(PREFIX, ATTRIBUTE, WORD, BYTE)                                                                  \
    ATTRIBUTE static uint32_t PREFIX##_run(uint32_t crc, const uint8_t *p, size_t n)                                   \
    {                                                                                                                  \
        for (; n >= 3 * BP_CRC_BLOCK; n -= 3 * BP_CRC_BLOCK, p += 3 * BP_CRC_BLOCK) {                                  \
            uint32_t b = 0, c = 0;                                                                                     \
            for (size_t at = 0; at < BP_CRC_BLOCK; at += 8) {                                                          \
                crc = (uint32_t)WORD(crc, bp_load_le64(p + at));                                                       \
                b = (uint32_t)WORD(b, bp_load_le64(p + BP_CRC_BLOCK + at));                                            \
                c = (uint32_t)WORD(c, bp_load_le64(p + 2 * BP_CRC_BLOCK + at));                                        \
            }                                                                                                          \
            crc = bp_crc_skip_block(bp_crc_skip_block(crc) ^ b) ^ c;                                                   \
        }                                                                                                              \
        for (; n >= 8; n -= 8, p += 8)                                                                                 \
            crc = (uint32_t)WORD(crc, bp_load_le64(p));                                                                \
        for (; n; n--, p++)                                                                                            \
            crc = BYTE(crc, *p);                                                                                       \
        return crc;                                                                                                    \
    }                                                                                                                  \
    ATTRIBUTE static void PREFIX##_blocks(const uint8_t *data, const int64_t *numbers, int64_t first, int64_t n,       \
                                          uint32_t *out)                                                               \
    {                                                                                                                  \
        int64_t i = 0;                                                                                                 \
        for (; i + 3 <= n; i += 3) {                                                                                   \
            const uint8_t *p = data + i * BP_CRC_BLOCK;                                                                \
            uint32_t a = 0xffffffffu, b = 0xffffffffu, c = 0xffffffffu;                                                \
            for (size_t at = 0; at < BP_CRC_BLOCK; at += 8) {                                                          \
                a = (uint32_t)WORD(a, bp_load_le64(p + at));                                                           \
                b = (uint32_t)WORD(b, bp_load_le64(p + BP_CRC_BLOCK + at));                                            \
                c = (uint32_t)WORD(c, bp_load_le64(p + 2 * BP_CRC_BLOCK + at));                                        \
            }                                                                                                          \
            out[i] = ~(uint32_t)WORD(a, (uint64_t)bp_number(numbers, first, i));                                       \
            out[i + 1] = ~(uint32_t)WORD(b, (uint64_t)bp_number(numbers, first, i + 1));                               \
            out[i + 2] = ~(uint32_t)WORD(c, (uint64_t)bp_number(numbers, first, i + 2));                               \
        }                                                                                                              \
        for (; i < n; i++) {                                                                                           \
            uint32_t crc = PREFIX##_run(0xffffffffu, data + i * BP_CRC_BLOCK, BP_CRC_BLOCK);                           \
            out[i] = ~(uint32_t)WORD(crc, (uint64_t)bp_number(numbers, first, i));                                     \
        }                                                                                                              \
    }

#if defined(__x86_64__)
BP_CRC_VARIANT(bp_sse42, __attribute__((target("sse4.2"))), _mm_crc32_u64, _mm_crc32_u8)
static int bp_sse42_available(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2") != 0;
}
#include "checksum_x86.h"
#endif

#if defined(__aarch64__) && defined(__linux__)
#if defined(__clang__)
#define BP_ARM_TARGET __attribute__((target("crc")))
#define BP_ARM_WORD __builtin_arm_crc32cd
#define BP_ARM_BYTE __builtin_arm_crc32cb
#else
#define BP_ARM_TARGET __attribute__((target("+crc")))
#define BP_ARM_WORD __builtin_aarch64_crc32cx
#define BP_ARM_BYTE __builtin_aarch64_crc32cb
#endif
BP_CRC_VARIANT(bp_armv8, BP_ARM_TARGET, BP_ARM_WORD, BP_ARM_BYTE)
static int bp_armv8_available(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#endif

/* What the variants look up; before any of them is used. */
static void bp_crc_init_all(void)
{
    bp_crc_init();
    bp_crc_init_joining();
#if defined(__x86_64__)
    bp_crc_init_folding();
#endif
}

/* Best first; the oracle last. */
static const bp_crc_variant bp_crc_variants[] = {
#if defined(__x86_64__)
    {"vpclmulqdq", bp_clmul_available, bp_clmul_run, bp_clmul_blocks},
    {"sse4.2", bp_sse42_available, bp_sse42_run, bp_sse42_blocks},
#endif
#if defined(__aarch64__) && defined(__linux__)
    {"armv8", bp_armv8_available, bp_armv8_run, bp_armv8_blocks},
#endif
    {"table", bp_always, bp_table_run, bp_table_blocks},
};

#define BP_CRC_N_VARIANTS ((int)(sizeof(bp_crc_variants) / sizeof(bp_crc_variants[0])))

#endif
