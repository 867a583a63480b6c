/* attention.c on bf16 arrays: its products are of bf16 numbers with fp32 sums, by the processor's matrix unit (AMX) where
   it has one. Scores and their softmax are fp32; weights are rounded to bf16 before they are multiplied.

   Scores lie with a row for each key and a column for each query, so that sixteen queries are worked on side by side. */

#include "amx.h"

#if AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

enum { QUERIES = 64, TOGETHER = 12 }; /* columns of scores and heads that are worked on at once */

static int matrix_unit;

/* Ask the system for the matrix unit, or leave it; returns whether it is used. Not while other functions run. */
int use_matrix_unit(int wanted) {
#if AMX
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    matrix_unit = wanted && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
#else
    (void)wanted;
#endif
    return matrix_unit;
}

#if AMX
/* Up to 32 rows and columns of c at a time. */
static void product_by_tiles(int add, long m, long n, long k, const bf16 *a, long lda, const pair *b, long ldb, float *c,
                             long ldc) {
    __asm__ volatile("" ::: "memory"); /* a tile's load does not tell the compiler that it reads memory */
    for (long i = 0; i < m; i += 32)
        for (long j = 0; j < n; j += 32) {
            const int tall = i + 16 < m, wide = j + 16 < n;
            const bf16 *a_ = a + i * lda;
            const pair *b_ = b + j;
            float *c_ = c + i * ldc + j, *below = c_ + 16 * ldc;
            if (add) {
                _tile_loadd(0, c_, 4 * ldc);
                if (wide) _tile_loadd(1, c_ + 16, 4 * ldc);
                if (tall) _tile_loadd(2, below, 4 * ldc);
                if (tall && wide) _tile_loadd(3, below + 16, 4 * ldc);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (long p = 0; p < k; p += 32) {
                _tile_loadd(4, a_ + p, 2 * lda);
                _tile_loadd(6, b_ + p / 2 * ldb, 4 * ldb);
                _tile_dpbf16ps(0, 4, 6);
                if (wide) {
                    _tile_loadd(7, b_ + p / 2 * ldb + 16, 4 * ldb);
                    _tile_dpbf16ps(1, 4, 7);
                }
                if (tall) {
                    _tile_loadd(5, a_ + 16 * lda + p, 2 * lda);
                    _tile_dpbf16ps(2, 5, 6);
                    if (wide) _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, c_, 4 * ldc);
            if (wide) _tile_stored(1, c_ + 16, 4 * ldc);
            if (tall) _tile_stored(2, below, 4 * ldc);
            if (tall && wide) _tile_stored(3, below + 16, 4 * ldc);
        }
    __asm__ volatile("" ::: "memory");
}
#endif

INLINE v16 upper(u16 x) { return (v16)(x << 16); }
INLINE v16 lower(u16 x) { return (v16)(x & 0xFFFF0000); }

/* c[4, 16] (+)= a [4, k] b [k, 16]. */
INLINE void tile(int add, long k, const bf16 *a, long lda, const pair *b, long ldb, float *c, long ldc) {
    v16 sum[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum[i] = add ? W(c + i * ldc) : every(0);
    for (long p = 0; p < k / 2; p++) {
        const u16 two = *(const u16 *)(b + p * ldb);
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            pair both;
            memcpy(&both, a + i * lda + 2 * p, 4);
#ifdef __AVX512BF16__
            sum[i] = (v16)_mm512_dpbf16_ps((__m512)sum[i], (__m512bh)(both + (u16){0}), (__m512bh)two);
#else
            sum[i] += upper(both + (u16){0}) * upper(two);
            sum[i] += lower(both + (u16){0}) * lower(two);
#endif
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) W(c + i * ldc) = sum[i];
}

/* c [m, n] (+)= a [m, k] b [k, n], where b is given in pairs of rows, [k / 2, n]. m and n are multiples of 16, k of 32. */
static void product(int add, long m, long n, long k, const bf16 *a, long lda, const pair *b, long ldb, float *c,
                    long ldc) {
#if AMX
    if (matrix_unit) {
        product_by_tiles(add, m, n, k, a, lda, b, ldb, c, ldc);
        return;
    }
#endif
    for (long j = 0; j < n; j += 16)
        for (long i = 0; i < m; i += 4) tile(add, k, a + i * lda, lda, b + j, ldb, c + i * ldc + j, ldc);
}

/* ---- the layouts that products want */

/* A token's vectors of `heads` heads, x + bias, to its place in [heads, T, d] with strides of `each` and 1. */
INLINE void take(long heads, long d, const bf16 *x, const float *bias, long each, bf16 *to) {
    for (long h = 0; h < heads; h++)
        for (long c = 0; c < d; c += 16) store(to + h * each + c, load(x + h * d + c) + W(bias + h * d + c));
}

/* Rows of 0 after the first `t`, and columns of 0 after the first `d`. */
INLINE void fill(long t, long d, long rows, long ld, bf16 *x) {
    if (ld > d)
        for (long i = 0; i < t; i++) memset(x + i * ld + d, 0, (ld - d) * sizeof(bf16));
    memset(x + t * ld, 0, (rows - t) * ld * sizeof(bf16));
}

/* x [m, n] -> [n, m], rows of x being `ld` apart. */
INLINE void transpose(long m, long n, const bf16 *x, long ld, bf16 *to) {
    for (long j = 0; j < n; j += 8)
        for (long i = 0; i < m; i += 8) turn(x + i * ld + j, ld, to + j * m + i, m);
}

/* Two rows of sixteen numbers as pairs. */
INLINE void pair_of(v16 upper, v16 lower, pair *to) {
    bf16 both[32];
    store(both, upper);
    store(both + 16, lower);
    *(u16 *)to = widened(both) | widened(both + 16) << 16;
}

/* A task is some heads of a sequence, as in attention.c. T is rounded up to tiles: `rows`; d to `wide`. */
typedef struct {
    long sequence, first, heads;
    long start, t, columns, rows, wide;
} Task;

INLINE Task task_of(long at, long heads, long d, const int64_t *offsets) {
    const long each = (heads + TOGETHER - 1) / TOGETHER, sequence = at / each, first = at % each * TOGETHER;
    const long start = offsets[sequence], t = offsets[sequence + 1] - start;
    return (Task){sequence, first, least(TOGETHER, heads - first), start, t, up_to(16, t), up_to(32, t), up_to(32, d)};
}

INLINE long tasks(long n, long heads) { return n * ((heads + TOGETHER - 1) / TOGETHER); }

/* Bytes that a thread needs beside its arguments, for sequences of up to T tokens. */
long attention_room_bf16(long t, long d) {
    const long rows = up_to(32, t), wide = up_to(32, d);
    const long heads = TOGETHER * rows * (4 * wide * 2 + 3 * d * 4 + 2 * 4);
    const long head = rows * wide * 2 * 5 + 3 * QUERIES * wide * 4;
    return heads + head + QUERIES * rows * (2 * 4 + 3 * 2) + (2 * QUERIES + 64) * 4 + 64 * 32;
}

/* The softmax over keys, in place, of scores [T, m] times `scale`: the inverse of each query's sum and its logarithm. */
INLINE void soften(long t, long m, float scale, float *scores, float *share, float *logs) {
    for (long i = 0; i < m; i += 16) {
        v16 top = W(scores + i), sum = every(0);
        for (long j = 1; j < t; j++) top = pick(W(scores + j * m + i) > top, W(scores + j * m + i), top);
        for (long j = 0; j < t; j++) {
            v16 weight = exponential16((W(scores + j * m + i) - top) * scale);
            W(scores + j * m + i) = weight;
            sum += weight;
        }
        W(share + i) = 1.0f / sum;
        W(logs + i) = top * scale + logarithm16(sum);
    }
}

/* Weights [T, m] times their query's share and dropout's factors, as pairs of rows up to `rows`. */
INLINE void weigh(long t, long m, long rows, const float *weights, const float *share, Stream16 *s, Noise noise,
                  float *keep, pair *to) {
    float *below = keep + QUERIES + 32;
    for (long j = 0; j < t; j += 2) {
        const int both = j + 1 < t;
        if (noise.dropped) {
            factors16(s, noise, m, keep);
            if (both) factors16(s, noise, m, below);
        }
        for (long i = 0; i < m; i += 16) {
            v16 one = W(weights + j * m + i) * W(share + i), other = every(0);
            if (both) other = W(weights + (j + 1) * m + i) * W(share + i);
            if (noise.dropped) one *= W(keep + i);
            if (noise.dropped && both) other *= W(below + i);
            pair_of(one, other, to + j / 2 * m + i);
        }
    }
    memset(to + (t + 1) / 2 * m, 0, (rows / 2 - (t + 1) / 2) * m * sizeof(pair));
}

/* x [d, m] to the places of `real` tokens, `ld` apart. */
INLINE void give_columns(long d, long m, long real, const bf16 *x, bf16 *to, long ld) {
    for (long i = 0; i < real; i += 8)
        for (long c = 0; c < d; c += 8) {
            bf16 part[64];
            const int whole_part = i + 8 <= real;
            turn(x + c * m + i, m, whole_part ? to + i * ld + c : part, whole_part ? ld : 8);
            if (!whole_part)
                for (long r = 0; r < real - i; r++) memcpy(to + (i + r) * ld + c, part + 8 * r, 16);
        }
}

/* As attention_forward. */
void attention_forward_bf16(long n, const int64_t *offsets, long heads, long d, const bf16 *qkv, const float *bias,
                            Noise noise, bf16 *mixed, float *lse, char *rooms, long room_each, int threads) {
    const long width = heads * d;
    const float scale = 1.0f / sqrtf(d);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long at = tasks(n, heads) - 1; at >= 0; at--) {
        const Task task = task_of(at, heads, d, offsets);
        const long t = task.t, columns = task.columns, rows = task.rows, wide = task.wide, each = rows * wide;
        const long column = task.first * d;
        const bf16 *x = qkv + task.start * 3 * width + column;
        const float *b = bias + column;
        char *room = rooms + room_each * THREAD;
        bf16 *qs = part(&room, 2 * task.heads * each), *ks = part(&room, 2 * task.heads * each);
        bf16 *vs = part(&room, 2 * task.heads * each), *vt = part(&room, 2 * rows * d);
        pair *qt = part(&room, 2 * each), *weights = part(&room, 2 * QUERIES * rows);
        float *scores = part(&room, 4 * QUERIES * rows), *out = part(&room, 4 * QUERIES * d);
        bf16 *rounded = part(&room, 2 * QUERIES * d);
        float *keep = part(&room, 4 * (2 * QUERIES + 64)), share[QUERIES], logs[QUERIES];
        for (long i = 0; i < t; i++, x += 3 * width) {
            take(task.heads, d, x, b, each, qs + i * wide);
            take(task.heads, d, x + width, b + width, each, ks + i * wide);
            take(task.heads, d, x + 2 * width, b + 2 * width, each, vs + i * wide);
        }
        Stream16 s = stream16(noise, at);
#if AMX
        if (matrix_unit) begin_tiles();
#endif
        for (long h = 0; h < task.heads; h++) {
            bf16 *q = qs + h * each, *k = ks + h * each, *v = vs + h * each;
            fill(t, d, rows, wide, q);
            fill(t, d, rows, wide, k);
            fill(t, d, rows, wide, v);
            pair_columns(columns, wide, q, wide, qt);
            transpose(rows, d, v, wide, vt);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, columns - first), real = least(m, t - first), token = task.start + first;
                product(0, columns, m, wide, k, wide, qt + first, columns, scores, m);
                soften(t, m, scale, scores, share, logs);
                for (long i = 0; i < real; i++) lse[(token + i) * heads + task.first + h] = logs[i];
                weigh(t, m, rows, scores, share, &s, noise, keep, weights);
                product(0, d, m, rows, vt, rows, weights, m, out, m);
                for (long c = 0; c < d * m; c += 16) store(rounded + c, W(out + c));
                give_columns(d, m, real, rounded, mixed + token * width + column + h * d, width);
            }
        }
#if AMX
        if (matrix_unit) _tile_release();
#endif
    }
}

/* A head's sums [T, d] to a token's place, times `factor`, and added to a sum over tokens. */
INLINE void give(long heads, long d, const float *from, long each, float factor, bf16 *to, float *sum) {
    for (long h = 0; h < heads; h++)
        for (long c = 0; c < d; c += 16) {
            v16 value = W(from + h * each + c) * factor;
            store(to + h * d + c, value);
            W(sum + h * d + c) += value;
        }
}

/* As attention_backward. */
void attention_backward_bf16(long n, const int64_t *offsets, long heads, long d, const bf16 *qkv, const float *bias,
                             Noise noise, const bf16 *mixed, const float *lse, const bf16 *d_mixed, bf16 *d_qkv,
                             float *sums, char *rooms, long room_each, int threads) {
    const long width = heads * d;
    const float scale = 1.0f / sqrtf(d);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long at = tasks(n, heads) - 1; at >= 0; at--) {
        const Task task = task_of(at, heads, d, offsets);
        const long t = task.t, columns = task.columns, rows = task.rows, wide = task.wide, each = rows * wide;
        const long column = task.first * d, own = rows * d;
        const bf16 *x = qkv + task.start * 3 * width + column;
        const float *b = bias + column;
        char *room = rooms + room_each * THREAD;
        bf16 *qs = part(&room, 2 * task.heads * each), *ks = part(&room, 2 * task.heads * each);
        bf16 *vs = part(&room, 2 * task.heads * each), *dys = part(&room, 2 * task.heads * each);
        float *dqs = part(&room, 4 * task.heads * own), *dks = part(&room, 4 * task.heads * own);
        float *dvs = part(&room, 4 * task.heads * own), *means = part(&room, 4 * task.heads * rows);
        float *logs = part(&room, 4 * task.heads * rows);
        pair *qt = part(&room, 2 * each), *dyt = part(&room, 2 * each), *kp = part(&room, 2 * own);
        pair *qp = part(&room, 2 * QUERIES * d), *dyp = part(&room, 2 * QUERIES * d);
        float *weights = part(&room, 4 * QUERIES * rows), *d_weights = part(&room, 4 * QUERIES * rows);
        bf16 *dropped = part(&room, 2 * QUERIES * rows), *d_scores = part(&room, 2 * QUERIES * rows);
        bf16 *d_turned = part(&room, 2 * QUERIES * rows);
        float *keep = (float *)room;
        for (long i = 0; i < t; i++, x += 3 * width) {
            take(task.heads, d, x, b, each, qs + i * wide);
            take(task.heads, d, x + width, b + width, each, ks + i * wide);
            take(task.heads, d, x + 2 * width, b + 2 * width, each, vs + i * wide);
            for (long h = 0; h < task.heads; h++) {
                const long from = (task.start + i) * width + column + h * d;
                v16 along = every(0);
                for (long c = 0; c < d; c += 16) {
                    *(h16 *)(dys + h * each + i * wide + c) = *(const h16 *)(d_mixed + from + c);
                    along += load(mixed + from + c) * load(d_mixed + from + c);
                }
                means[h * rows + i] = whole(along);
                logs[h * rows + i] = lse[(task.start + i) * heads + task.first + h];
            }
        }
        for (long h = 0; h < task.heads; h++)
            for (long i = t; i < rows; i++) means[h * rows + i] = 0.0f, logs[h * rows + i] = INFINITY; /* no weights */
        ones(QUERIES, keep);
        Stream16 s = stream16(noise, at);
#if AMX
        if (matrix_unit) begin_tiles();
#endif
        for (long h = 0; h < task.heads; h++) {
            bf16 *q = qs + h * each, *k = ks + h * each, *v = vs + h * each, *dy = dys + h * each;
            fill(t, d, rows, wide, q);
            fill(t, d, rows, wide, k);
            fill(t, d, rows, wide, v);
            fill(t, d, rows, wide, dy);
            pair_columns(columns, wide, q, wide, qt);
            pair_columns(columns, wide, dy, wide, dyt);
            pair_rows(rows, d, k, wide, kp);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, columns - first), deep = up_to(32, m);
                product(0, columns, m, wide, k, wide, qt + first, columns, weights, m);
                product(0, columns, m, wide, v, wide, dyt + first, columns, d_weights, m);
                for (long j = 0; j < t; j++) {
                    const float *w = weights + j * m, *dw = d_weights + j * m;
                    const float *l = logs + h * rows + first, *mean = means + h * rows + first;
                    if (noise.dropped) factors16(&s, noise, m, keep);
                    for (long i = 0; i < m; i += 16) {
                        v16 p = W(w + i) * scale - W(l + i);
                        p = pick(p < every(-87.0f), every(0), exponential16(pick(p > every(0), every(0), p)));
                        store(dropped + j * deep + i, p * W(keep + i));
                        store(d_scores + j * deep + i, p * (W(keep + i) * W(dw + i) - W(mean + i)));
                    }
                }
                fill(t, m, rows, deep, dropped);
                fill(t, m, rows, deep, d_scores);
                transpose(rows, deep, d_scores, deep, d_turned);
                pair_rows(deep, d, q + first * wide, wide, qp);
                pair_rows(deep, d, dy + first * wide, wide, dyp);
                product(0, m, d, rows, d_turned, rows, kp, d, dqs + h * own + first * d, d);
                product(first > 0, columns, d, deep, d_scores, deep, qp, d, dks + h * own, d);
                product(first > 0, columns, d, deep, dropped, deep, dyp, d, dvs + h * own, d);
            }
        }
#if AMX
        if (matrix_unit) _tile_release();
#endif
        bf16 *to = d_qkv + task.start * 3 * width + column;
        float *sum = sums + task.sequence * 3 * width + column;
        for (int which = 0; which < 3; which++) memset(sum + which * width, 0, task.heads * d * sizeof(float));
        for (long i = 0; i < t; i++, to += 3 * width) {
            give(task.heads, d, dqs + i * d, own, scale, to, sum);
            give(task.heads, d, dks + i * d, own, scale, to + width, sum + width);
            give(task.heads, d, dvs + i * d, own, 1.0f, to + 2 * width, sum + 2 * width);
        }
    }
}
