/* Attention, a sequence and some heads at a time in the processor's cache. Scores are computed again in the backward pass
   (FlashAttention, Dao et al. 2022), so that memory grows with S, not with S T. */

#include "vector.h"

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

enum { QUERIES = 48, TOGETHER = 12 }; /* rows of scores and heads that are worked on at once */

/* c (+)= a b for `mr` rows and 8 `nr` columns of c; a's element (i, p) stands at i am + p ap. */
INLINE void tile(const int mr, const int nr, int add, long k, const float *a, long am, long ap, const float *b, long ldb,
                 float *c, long ldc) {
    v8 sum[6][2];
#pragma GCC unroll 6
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nr; j++) sum[i][j] = add ? V(c + i * ldc + 8 * j) : all(0);
    for (long p = 0; p < k; p++)
    #pragma GCC unroll 6
    for (int i = 0; i < mr; i++)
    #pragma GCC unroll 2
        for (int j = 0; j < nr; j++) sum[i][j] += a[i * am + p * ap] * V(b + p * ldb + 8 * j);
#pragma GCC unroll 6
    for (int i = 0; i < mr; i++)
#pragma GCC unroll 2
        for (int j = 0; j < nr; j++) V(c + i * ldc + 8 * j) = sum[i][j];
}

#define TILE(mr) \
    case mr: \
        if (wide) tile(mr, 2, add, k, a + i * am, am, ap, b + j, ldb, c + i * ldc + j, ldc); \
        else tile(mr, 1, add, k, a + i * am, am, ap, b + j, ldb, c + i * ldc + j, ldc); \
        break;

/* c [m, n] (+)= a [m, k] b [k, n]; n is a multiple of 8. */
static void product(int add, long m, long n, long k, const float *a, long am, long ap, const float *b, long ldb, float *c,
                    long ldc) {
    for (long j = 0; j < n; j += 16) {
        const int wide = j + 16 <= n;
        for (long i = 0; i < m; i += 6) switch (least(6, m - i)) { TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) }
    }
}

/* A token's vectors of `heads` heads, side by side, into [heads, T, d] at its place: (x + bias) factor. */
INLINE void take(long t, long heads, long d, const float *x, const float *bias, float factor, float *to) {
    for (long h = 0; h < heads; h++)
        for (long c = 0; c < d; c += 8) V(to + h * t * d + c) = (V(x + h * d + c) + V(bias + h * d + c)) * factor;
}

/* The way back, added to a sum over tokens. */
INLINE void give(long t, long heads, long d, const float *from, float factor, float *to, float *sum) {
    for (long h = 0; h < heads; h++)
        for (long c = 0; c < d; c += 8) {
            v8 value = V(from + h * t * d + c) * factor;
            V(to + h * d + c) = value;
            V(sum + h * d + c) += value;
        }
}

/* [T, d] -> [d, ld], of which the last columns become 0. */
INLINE void transpose(long t, long d, const float *x, long ld, float *to) {
    for (long c = 0; c < d; c++) {
        for (long i = 0; i < t; i++) to[c * ld + i] = x[i * d + c];
        for (long i = t; i < ld; i++) to[c * ld + i] = 0.0f;
    }
}

INLINE long rounded(long t) { return (t + 7) / 8 * 8; }

/* A task is some heads of a sequence: of one head alone, each row would lie in another page of memory. */
typedef struct {
    long sequence, first, heads; /* heads from `first` on */
    long start, t, ld;           /* first token, their number T, and T rounded up */
} Task;

INLINE Task task_of(long at, long heads, const int64_t *offsets) {
    const long each = (heads + TOGETHER - 1) / TOGETHER, sequence = at / each, first = at % each * TOGETHER;
    const long start = offsets[sequence], t = offsets[sequence + 1] - start;
    return (Task){sequence, first, least(TOGETHER, heads - first), start, t, rounded(t)};
}

INLINE long tasks(long n, long heads) { return n * ((heads + TOGETHER - 1) / TOGETHER); }

/* Floats that a thread needs beside its arguments, for sequences of up to T tokens. */
long attention_room(long t, long d) {
    return (7 * TOGETHER + 2) * rounded(t) * d + 2 * QUERIES * rounded(t) + (TOGETHER + 1) * rounded(t) + 32;
}

/* mixed [S, D] = dropout(softmax(q k^T / sqrt d)) v for q, k, v of qkv + bias [S, 3 D]. `offsets` [n + 1]: where the
   sequences begin. `lse` [S, H]: log of the sum of e^score, for the backward pass. */
void attention_forward(long n, const int64_t *offsets, long heads, long d, const float *qkv, const float *bias,
                       Noise noise, float *mixed, float *lse, float *room, long room_each, int threads) {
    const long width = heads * d;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long at = tasks(n, heads) - 1; at >= 0; at--) { /* the longest sequences come last: they are taken first */
        const Task task = task_of(at, heads, offsets);
        const long t = task.t, ld = task.ld, each = t * d, column = task.first * d;
        const float *x = qkv + task.start * 3 * width + column, *b = bias + column;
        float *qs = room + room_each * THREAD, *ks = qs + task.heads * each, *vs = ks + task.heads * each;
        float *kt = vs + task.heads * each, *scores = kt + ld * d, *keep = scores + QUERIES * ld;
        for (long i = 0; i < t; i++, x += 3 * width) {
            take(t, task.heads, d, x, b, 1.0f / sqrtf(d), qs + i * d);
            take(t, task.heads, d, x + width, b + width, 1.0f, ks + i * d);
            take(t, task.heads, d, x + 2 * width, b + 2 * width, 1.0f, vs + i * d);
        }
        Stream s = stream(noise, at);
        for (long h = 0; h < task.heads; h++) {
            transpose(t, d, ks + h * each, ld, kt);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, t - first);
                product(0, m, ld, d, qs + h * each + first * d, d, 1, kt, ld, scores, ld);
                for (long i = 0; i < m; i++) {
                    float *w = scores + i * ld, *lse_ = lse + (task.start + first + i) * heads + task.first + h;
                    for (long j = t; j < ld; j++) w[j] = -INFINITY;
                    v8 most = V(w), sum = all(0);
                    for (long j = 8; j < ld; j += 8) most = choose(V(w + j) > most, V(w + j), most);
                    float top = most[0];
                    for (int j = 1; j < 8; j++) top = most[j] > top ? most[j] : top;
                    for (long j = 0; j < ld; j += 8) V(w + j) = exponential(V(w + j) - top);
                    for (long j = t; j < ld; j++) w[j] = 0.0f;
                    for (long j = 0; j < ld; j += 8) sum += V(w + j);
                    const float whole = total(sum), share = 1.0f / whole;
                    *lse_ = top + logf(whole);
                    if (noise.dropped) {
                        factors(&s, noise, t, keep);
                        for (long j = 0; j < ld; j += 8) V(w + j) *= V(keep + j) * share;
                    } else
                        for (long j = 0; j < ld; j += 8) V(w + j) *= share;
                }
                float *y = mixed + (task.start + first) * width + column + h * d;
                product(0, m, d, t, scores, ld, 1, vs + h * each, d, y, width);
            }
        }
    }
}

/* From the gradient of `mixed` that of qkv [S, 3 D]; `sums` [n, 3 D]: of bias. */
void attention_backward(long n, const int64_t *offsets, long heads, long d, const float *qkv, const float *bias,
                        Noise noise, const float *mixed, const float *lse, const float *d_mixed, float *d_qkv,
                        float *sums, float *room, long room_each, int threads) {
    const long width = heads * d;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (long at = tasks(n, heads) - 1; at >= 0; at--) {
        const Task task = task_of(at, heads, offsets);
        const long t = task.t, ld = task.ld, each = t * d, column = task.first * d, block = task.heads * each;
        const float *x = qkv + task.start * 3 * width + column, *b = bias + column;
        float *qs = room + room_each * THREAD, *ks = qs + block, *vs = ks + block, *dys = vs + block;
        float *dqs = dys + block, *dks = dqs + block, *dvs = dks + block, *kt = dvs + block, *vt = kt + ld * d;
        float *weights = vt + ld * d, *d_weights = weights + QUERIES * ld, *means = d_weights + QUERIES * ld;
        float *keep = means + task.heads * t;
        for (long i = 0; i < t; i++, x += 3 * width) {
            take(t, task.heads, d, x, b, 1.0f / sqrtf(d), qs + i * d);
            take(t, task.heads, d, x + width, b + width, 1.0f, ks + i * d);
            take(t, task.heads, d, x + 2 * width, b + 2 * width, 1.0f, vs + i * d);
        }
        for (long i = 0; i < t; i++)
            for (long h = 0; h < task.heads; h++) {
                const long from = (task.start + i) * width + column + h * d;
                v8 along = all(0);
                for (long c = 0; c < d; c += 8) {
                    v8 dy = V(d_mixed + from + c);
                    V(dys + (h * t + i) * d + c) = dy;
                    along += V(mixed + from + c) * dy;
                }
                means[h * t + i] = total(along);
            }
        ones(ld, keep);
        Stream s = stream(noise, at);
        for (long h = 0; h < task.heads; h++) {
            const float *q = qs + h * each, *k = ks + h * each, *dy = dys + h * each;
            transpose(t, d, k, ld, kt);
            transpose(t, d, vs + h * each, ld, vt);
            for (long first = 0; first < t; first += QUERIES) {
                const long m = least(QUERIES, t - first);
                product(0, m, ld, d, q + first * d, d, 1, kt, ld, weights, ld);
                product(0, m, ld, d, dy + first * d, d, 1, vt, ld, d_weights, ld);
                for (long i = 0; i < m; i++) {
                    const float l = lse[(task.start + first + i) * heads + task.first + h];
                    const float mean = means[h * t + first + i];
                    float *w = weights + i * ld, *dw = d_weights + i * ld;
                    if (noise.dropped) factors(&s, noise, t, keep);
                    for (long j = 0; j < ld; j += 8) {
                        v8 p = V(w + j) - l;
                        p = exponential(choose(p > all(0.0f), all(0.0f), p));
                        V(w + j) = p * V(keep + j);
                        V(dw + j) = p * (V(keep + j) * V(dw + j) - mean);
                    }
                }
                product(0, m, d, t, d_weights, ld, 1, k, d, dqs + h * each + first * d, d);
                product(first > 0, t, d, m, d_weights, 1, ld, q + first * d, d, dks + h * each, d);
                product(first > 0, t, d, m, weights, 1, ld, dy + first * d, d, dvs + h * each, d);
            }
        }
        float *to = d_qkv + task.start * 3 * width + column, *sum = sums + task.sequence * 3 * width + column;
        for (int part = 0; part < 3; part++) memset(sum + part * width, 0, task.heads * d * sizeof(float));
        for (long i = 0; i < t; i++, to += 3 * width) {
            give(t, task.heads, d, dqs + i * d, 1.0f / sqrtf(d), to, sum);
            give(t, task.heads, d, dks + i * d, 1.0f, to + width, sum + width);
            give(t, task.heads, d, dvs + i * d, 1.0f, to + 2 * width, sum + 2 * width);
        }
    }
}
