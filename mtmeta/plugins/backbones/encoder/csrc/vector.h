/* Eight floats at a time, e^x, and the random bits of dropout.

   Shapes everywhere: S packed tokens, n sequences of T tokens each, D hidden, I intermediate, H heads, d = D / H.
   Row-major. D, I and d are multiples of 8. Nothing here depends on the number of threads: sums over rows are made by
   blocks of rows, and the random bits belong to a block, too. */

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define V(pointer) (*(v8 *)(pointer))

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE v8 all(float x) { return (v8){x, x, x, x, x, x, x, x}; }
INLINE v8 choose(i8 which, v8 a, v8 b) { return (v8)((which & (i8)a) | (~which & (i8)b)); }
INLINE float total(v8 x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

/* e^x for x <= 0, within 1.2e-7 of its value; below -87 that of -87. */
INLINE v8 exponential(v8 x) {
    x = choose(x < all(-87.0f), all(-87.0f), x);
    v8 n = x * 1.44269504f + 12582912.0f; /* to the nearest whole number */
    n -= 12582912.0f;
    x -= n * 0.693359375f;
    x -= n * -2.12194440e-4f;
    v8 y = 1.0f / 5040.0f * x + 1.0f / 720.0f;
    y = y * x + 1.0f / 120.0f;
    y = y * x + 1.0f / 24.0f;
    y = y * x + 1.0f / 6.0f;
    y = y * x + 0.5f;
    y = y * x + 1.0f;
    y = y * x + 1.0f;
    return y * (v8)((__builtin_convertvector(n, i8) + 127) << 23);
}

/* ---- dropout: eight SFC32 generators side by side (Doty-Humphrey), 16 bits an element */

typedef struct {
    uint64_t seed;
    uint32_t dropped; /* of 65,536; 0: no dropout */
    float scale;      /* what is kept is multiplied by it */
} Noise;

typedef struct {
    u8 a, b, c, n;
} Stream;

INLINE uint64_t mixed64(uint64_t x) { /* SplitMix64's, Steele et al. 2014 */
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

INLINE u8 next(Stream *s) {
    u8 t = s->a + s->b + s->n;
    s->n += 1;
    s->a = s->b ^ (s->b >> 9);
    s->b = s->c + (s->c << 3);
    s->c = ((s->c << 21) | (s->c >> 11)) + t;
    return t;
}

static Stream stream(Noise noise, uint64_t place) {
    uint64_t state = mixed64(noise.seed + 0x9E3779B97F4A7C15u) ^ mixed64(place + 0xD1B54A32D192ED03u);
    uint64_t words[12];
    for (int i = 0; i < 12; i++) words[i] = mixed64(state += 0x9E3779B97F4A7C15u);
    Stream s;
    memcpy(&s.a, words, 32);
    memcpy(&s.b, words + 4, 32);
    memcpy(&s.c, words + 8, 32);
    s.n = (u8){1, 1, 1, 1, 1, 1, 1, 1};
    for (int i = 0; i < 12; i++) next(&s);
    return s;
}

/* Factors of the next `count` elements, 0 or `scale`; writes up to 15 more. */
INLINE void factors(Stream *s, Noise noise, long count, float *keep) {
    const i8 dropped = (int32_t)noise.dropped - (i8){0};
    const i8 scale = (i8)all(noise.scale);
    for (long i = 0; i < count; i += 16) {
        u8 bits = next(s);
        V(keep + i) = (v8)(((i8)(bits & 0xFFFF) >= dropped) & scale);
        V(keep + i + 8) = (v8)(((i8)(bits >> 16) >= dropped) & scale);
    }
}

INLINE void ones(long count, float *keep) {
    for (long i = 0; i < count; i++) keep[i] = 1.0f;
}
