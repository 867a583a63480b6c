/* What products of bf16 matrices share: the processor's matrix unit (AMX), where it has one, and the layouts it wants.

   A tile is 16 rows of 64 bytes: 32 bf16 numbers of a row, or 16 pairs of them, or 16 sums. */

#pragma once

#include "bf16.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define AMX 1
#else
#define AMX 0
#endif

typedef uint32_t pair; /* two bf16 numbers of one column, the upper one in the low half */

#if AMX
/* Eight tiles of 16 rows of 64 bytes. */
INLINE void begin_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("" ::"r"(&config) : "memory"); /* the compiler thinks that the next line reads a pointer alone */
    _tile_loadconfig(&config);
}
#endif

/* ---- layouts */

INLINE long up_to(long multiple, long t) { return (t + multiple - 1) / multiple * multiple; }

/* Parts of a thread's room, each beginning at a cache line. */
INLINE void *part(char **room, long bytes) {
    char *begin = *room;
    *room += up_to(64, bytes);
    return begin;
}

/* x [k, n] as pairs of rows, [k / 2, n]. */
INLINE void pair_rows(long k, long n, const bf16 *x, long ld, pair *to) {
    for (long p = 0; p < k / 2; p++)
        for (long c = 0; c < n; c += 16) {
            const bf16 *first = x + 2 * p * ld + c;
            *(u16 *)(to + p * n + c) = widened(first) | widened(first + ld) << 16;
        }
}

#define LOW32(a, b) __builtin_shuffle(a, b, (u8){0, 8, 1, 9, 2, 10, 3, 11})
#define HIGH32(a, b) __builtin_shuffle(a, b, (u8){4, 12, 5, 13, 6, 14, 7, 15})

/* The transpose of x [n, k] as pairs of rows, [k / 2, n]: x's own pairs of columns, transposed. */
INLINE void pair_columns(long n, long k, const bf16 *x, long ld, pair *to) {
    for (long i = 0; i < n; i += 8)
        for (long p = 0; p < k / 2; p += 8) {
            u8 a[8], b[8];
            for (int r = 0; r < 8; r++) a[r] = *(const u8 *)(x + (i + r) * ld + 2 * p);
            for (int r = 0; r < 4; r++) b[2 * r] = LOW32(a[r], a[r + 4]), b[2 * r + 1] = HIGH32(a[r], a[r + 4]);
            for (int r = 0; r < 4; r++) a[2 * r] = LOW32(b[r], b[r + 4]), a[2 * r + 1] = HIGH32(b[r], b[r + 4]);
            for (int r = 0; r < 4; r++) b[2 * r] = LOW32(a[r], a[r + 4]), b[2 * r + 1] = HIGH32(a[r], a[r + 4]);
            for (int r = 0; r < 8; r++) *(u8 *)(to + (p + r) * n + i) = b[r];
        }
}
