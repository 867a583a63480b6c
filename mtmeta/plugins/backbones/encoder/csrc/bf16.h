/* Sixteen floats at a time, read from bf16 numbers and rounded to them; dropout's bits for as many.

   A bf16 number is the upper half of a float. All arithmetic is in fp32; a result is rounded once, to the nearest, ties
   to even. D, I and d are multiples of 16 here. */

#pragma once

#include "vector.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

typedef uint16_t bf16;
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t i16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t u16 __attribute__((vector_size(64), aligned(4), may_alias));
typedef bf16 h16 __attribute__((vector_size(32), aligned(2), may_alias));

#define W(pointer) (*(v16 *)(pointer))

INLINE v16 every(float x) { return x - (v16){0}; }
INLINE v16 pick(i16 which, v16 a, v16 b) { return (v16)((which & (i16)a) | (~which & (i16)b)); }

/* Intrinsics stand where the compiler makes several instructions of what the processor does in one. */

INLINE float whole(v16 x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    v8 half;
    for (int j = 0; j < 8; j++) half[j] = x[j] + x[j + 8];
    return total(half);
#endif
}

INLINE float largest(v16 x) {
#ifdef __AVX512F__
    return _mm512_reduce_max_ps((__m512)x);
#else
    float top = x[0];
    for (int j = 1; j < 16; j++) top = x[j] > top ? x[j] : top;
    return top;
#endif
}

INLINE u16 widened(const bf16 *from) {
#ifdef __AVX512F__
    return (u16)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)from));
#else
    return __builtin_convertvector(*(const h16 *)from, u16);
#endif
}

INLINE v16 load(const bf16 *from) { return (v16)(widened(from) << 16); }

/* a / b, for what will be rounded to bf16: within 1e-6 of its value. */
INLINE v16 ratio(v16 a, v16 b) {
#ifdef __AVX512F__
    v16 r = (v16)_mm512_rcp14_ps((__m512)b);
    return a * (r * (2.0f - b * r));
#else
    return a / b;
#endif
}

INLINE h16 rounded_to_bf16(v16 x) {
#ifdef __AVX512BF16__
    return (h16)_mm512_cvtneps_pbh((__m512)x);
#else
    const u16 bits = (u16)x; /* the NaN that arithmetic makes stays one */
    return __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, h16);
#endif
}

INLINE void store(bf16 *to, v16 x) { *(h16 *)to = rounded_to_bf16(x); }

/* e^x for x <= 0, within 8e-6 of its value; below -87 that of -87. */
INLINE v16 exponential16(v16 x) {
    x = pick(x < every(-87.0f), every(-87.0f), x) * 1.44269504f;
#ifdef __AVX512F__
    const v16 n = (v16)_mm512_roundscale_ps((__m512)x, 8); /* to the nearest whole number */
#else
    v16 n = x + 12582912.0f;
    n -= 12582912.0f;
#endif
    x -= n;
    v16 y = 1.32764715e-3f * x + 9.67554191e-3f; /* 2^x up to 1/2, by weighted least squares */
    y = y * x + 5.55071328e-2f;
    y = y * x + 2.40221197e-1f;
    y = y * x + 6.93146967e-1f;
    y = y * x + 1.0f;
#ifdef __AVX512F__
    return (v16)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    return y * (v16)((__builtin_convertvector(n, i16) + 127) << 23);
#endif
}

/* ln x for x >= 1, within 6e-7 of its value. */
INLINE v16 logarithm16(v16 x) {
    const i16 bits = (i16)x, high = (bits & 0x7FFFFF) > 0x3504F3; /* more than sqrt(2) */
    const i16 exponent = (bits >> 23) - 127 - high;
    const v16 f = (v16)(bits - (exponent << 23)) - 1.0f;
    v16 y = f * -1.01020158e-1f + 1.64199173e-1f; /* ln (1 + f) / f, by weighted least squares */
    y = y * f - 1.73335094e-1f;
    y = y * f + 1.98730581e-1f;
    y = y * f - 2.49593409e-1f;
    y = y * f + 3.33361815e-1f;
    y = y * f - 5.00006675e-1f;
    y = y * f + 9.99999814e-1f;
    y = __builtin_convertvector(exponent, v16) * 0.693147181f + y * f;
    return pick(x < every(INFINITY), y, x); /* NaN stays one */
}

/* ---- dropout: sixteen SFC32 generators side by side */

typedef struct {
    u16 a, b, c, n;
} Stream16;

INLINE u16 next16(Stream16 *s) {
    u16 t = s->a + s->b + s->n;
    s->n += 1;
    s->a = s->b ^ (s->b >> 9);
    s->b = s->c + (s->c << 3);
    s->c = ((s->c << 21) | (s->c >> 11)) + t;
    return t;
}

static Stream16 stream16(Noise noise, uint64_t place) {
    uint64_t state = mixed64(noise.seed + 0x9E3779B97F4A7C15u) ^ mixed64(place + 0xD1B54A32D192ED03u);
    uint64_t words[24];
    for (int i = 0; i < 24; i++) words[i] = mixed64(state += 0x9E3779B97F4A7C15u);
    Stream16 s;
    memcpy(&s.a, words, 64);
    memcpy(&s.b, words + 8, 64);
    memcpy(&s.c, words + 16, 64);
    s.n = (u16){0} + 1;
    for (int i = 0; i < 12; i++) next16(&s);
    return s;
}

/* Factors of the next `count` elements, 0 or `scale`; writes up to 31 more. */
INLINE void factors16(Stream16 *s, Noise noise, long count, float *keep) {
    const u16 dropped = noise.dropped + (u16){0};
    const i16 scale = (i16)every(noise.scale);
    for (long i = 0; i < count; i += 32) {
        u16 bits = next16(s);
        W(keep + i) = (v16)((i16)((bits & 0xFFFF) >= dropped) & scale);
        W(keep + i + 16) = (v16)((i16)((bits >> 16) >= dropped) & scale);
    }
}

/* ---- transposition */

typedef bf16 h8 __attribute__((vector_size(16), aligned(2), may_alias));

#define LOW(a, b) __builtin_shuffle(a, b, (h8){0, 8, 1, 9, 2, 10, 3, 11})
#define HIGH(a, b) __builtin_shuffle(a, b, (h8){4, 12, 5, 13, 6, 14, 7, 15})

/* Eight rows of eight, as an interleaving done three times. */
INLINE void turn(const bf16 *from, long ld, bf16 *to, long to_ld) {
    h8 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = *(const h8 *)(from + i * ld);
    for (int i = 0; i < 4; i++) b[2 * i] = LOW(a[i], a[i + 4]), b[2 * i + 1] = HIGH(a[i], a[i + 4]);
    for (int i = 0; i < 4; i++) a[2 * i] = LOW(b[i], b[i + 4]), a[2 * i + 1] = HIGH(b[i], b[i + 4]);
    for (int i = 0; i < 4; i++) b[2 * i] = LOW(a[i], a[i + 4]), b[2 * i + 1] = HIGH(a[i], a[i + 4]);
    for (int i = 0; i < 8; i++) *(h8 *)(to + i * to_ld) = b[i];
}
