/* attention.c on bf16 arrays: its products are of bf16 numbers with fp32 sums, by the processor's matrix unit (AMX) where
   it has one. Scores and their softmax are fp32; weights are rounded to bf16 before they are multiplied. */

#include "bf16.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define AMX 1
#else
#define AMX 0
#endif

enum { QUERIES = 64, TOGETHER = 12 }; /* rows of scores and heads that are worked on at once */

typedef uint32_t pair; /* two bf16 numbers of one column, the upper one in the low half */

static int matrix_unit;

/* Ask the system for the matrix unit, or leave it; returns whether it is used. Not while other functions run. */
int use_matrix_unit(int wanted) {
#if AMX
    enum { REQUEST = 0x1023, TILE_DATA = 18 };
    matrix_unit = wanted && !syscall(SYS_arch_prctl, REQUEST, TILE_DATA);
#endif
    return matrix_unit;
}

#if AMX
/* Eight tiles of 16 rows of 64 bytes. */
INLINE void begin_tiles(void) {
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
}

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

INLINE long up_to(long multiple, long t) { return (t + multiple - 1) / multiple * multiple; }

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

/* x [m, n] -> [n, m]. */
INLINE void transpose(long m, long n, const bf16 *x, bf16 *to) {
    for (long j = 0; j < n; j += 8)
        for (long i = 0; i < m; i += 8) turn(x + i * n + j, n, to + j * m + i, m);
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

/* Parts of a thread's room, each beginning at a cache line. */
INLINE void *part(char **room, long bytes) {
    char *begin = *room;
    *room += up_to(64, bytes);
    return begin;
}

/* Bytes that a thread needs beside its arguments, for sequences of up to T tokens. */
long attention_room_bf16(long t, long d) {
    const long rows = up_to(32, t), wide = up_to(32, d);
    const long heads = TOGETHER * rows * (4 * wide * 2 + 3 * d * 4 + 4);
    const long head = rows * wide * 2 * 5 + 3 * QUERIES * wide * 4;
    return heads + head + QUERIES * rows * (2 * 4 + 4 * 2) + (rows + 32) * 4 + 64 * 32;
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
        bf16 *vs = part(&room, 2 * task.heads * each), *weights = part(&room, 2 * QUERIES * rows);
        pair *kt = part(&room, 2 * each), *vp = part(&room, 2 * rows * d);
        float *scores = part(&room, 4 * QUERIES * rows), *out = part(&room, 4 * QUERIES * d), *keep = (float *)room;
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
            pair_columns(columns, wide, k, wide, kt);
            pair_rows(rows, d, v, wide, vp);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, columns - first), real = least(m, t - first);
                product(0, m, columns, wide, q + first * wide, wide, kt, columns, scores, columns);
                for (long i = 0; i < real; i++) {
                    float *w = scores + i * columns, *lse_ = lse + (task.start + first + i) * heads + task.first + h;
                    for (long j = t; j < columns; j++) w[j] = -INFINITY;
                    v16 most = W(w), sum = every(0);
                    for (long j = 16; j < columns; j += 16) most = pick(W(w + j) > most, W(w + j), most);
                    const float top = largest(most);
                    for (long j = 0; j < columns; j += 16) W(w + j) = exponential16((W(w + j) - top) * scale);
                    for (long j = t; j < columns; j++) w[j] = 0.0f;
                    for (long j = 0; j < columns; j += 16) sum += W(w + j);
                    const float all_weights = whole(sum), share = 1.0f / all_weights;
                    *lse_ = top * scale + logf(all_weights);
                    if (noise.dropped) {
                        factors16(&s, noise, t, keep);
                        for (long j = 0; j < columns; j += 16)
                            store(weights + i * rows + j, W(w + j) * (W(keep + j) * share));
                    } else
                        for (long j = 0; j < columns; j += 16) store(weights + i * rows + j, W(w + j) * share);
                }
                fill(real, columns, m, rows, weights);
                product(0, m, d, rows, weights, rows, vp, d, out, d);
                bf16 *y = mixed + (task.start + first) * width + column + h * d;
                for (long i = 0; i < real; i++)
                    for (long c = 0; c < d; c += 16) store(y + i * width + c, W(out + i * d + c));
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
        pair *kt = part(&room, 2 * each), *vt = part(&room, 2 * each), *kp = part(&room, 2 * own);
        pair *qp = part(&room, 2 * QUERIES * d), *dyp = part(&room, 2 * QUERIES * d);
        float *weights = part(&room, 4 * QUERIES * rows), *d_weights = part(&room, 4 * QUERIES * rows);
        bf16 *dropped = part(&room, 2 * QUERIES * rows), *turned = part(&room, 2 * QUERIES * rows);
        bf16 *d_scores = part(&room, 2 * QUERIES * rows), *d_turned = part(&room, 2 * QUERIES * rows);
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
            }
        }
        ones(columns, keep);
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
            pair_columns(columns, wide, k, wide, kt);
            pair_columns(columns, wide, v, wide, vt);
            pair_rows(rows, d, k, wide, kp);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, columns - first), real = least(m, t - first), deep = up_to(32, m);
                product(0, m, columns, wide, q + first * wide, wide, kt, columns, weights, columns);
                product(0, m, columns, wide, dy + first * wide, wide, vt, columns, d_weights, columns);
                for (long i = 0; i < real; i++) {
                    const float l = lse[(task.start + first + i) * heads + task.first + h];
                    const float mean = means[h * rows + first + i];
                    float *w = weights + i * columns, *dw = d_weights + i * columns;
                    if (noise.dropped) factors16(&s, noise, t, keep);
                    for (long j = t; j < columns; j++) w[j] = -INFINITY;
                    for (long j = 0; j < columns; j += 16) {
                        v16 p = W(w + j) * scale - l;
                        p = pick(p < every(-87.0f), every(0), exponential16(pick(p > every(0), every(0), p)));
                        store(dropped + i * rows + j, p * W(keep + j));
                        store(d_scores + i * rows + j, p * (W(keep + j) * W(dw + j) - mean));
                    }
                }
                fill(real, columns, deep, rows, dropped);
                fill(real, columns, deep, rows, d_scores);
                transpose(deep, rows, dropped, turned);
                transpose(deep, rows, d_scores, d_turned);
                pair_rows(deep, d, q + first * wide, wide, qp);
                pair_rows(deep, d, dy + first * wide, wide, dyp);
                product(0, m, d, rows, d_scores, rows, kp, d, dqs + h * own + first * d, d);
                product(first > 0, columns, d, deep, d_turned, deep, qp, d, dks + h * own, d);
                product(first > 0, columns, d, deep, turned, deep, dyp, d, dvs + h * own, d);
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
