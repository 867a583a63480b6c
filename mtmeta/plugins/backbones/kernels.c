/* What lies between the matrix products of a BERT layer, in fp32 on a CPU, forward and backward.

   Each function passes over its arrays once: bias, dropout, residual and LayerNorm together, gelu with its bias, and
   attention one sequence and head at a time in the processor's cache (FlashAttention, Dao et al. 2022: scores are
   computed again in the backward pass, so memory grows with S, not with S T).

   Shapes: S packed tokens, n sequences of T tokens each, D hidden, I intermediate, H heads, d = D / H. Row-major. D, I
   and d are multiples of 8. Sums over rows are made by blocks of BLOCK rows and the random bits of dropout belong to a
   block, too, so that results do not depend on the number of threads. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#define THREAD omp_get_thread_num()
#else
#define THREAD 0
#endif

typedef float v8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t i8 __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint32_t u8 __attribute__((vector_size(32), aligned(4), may_alias));

enum { BLOCK = 64, QUERIES = 48, TOGETHER = 12 };

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

/* ---- y = LayerNorm(residual + dropout(x + bias)): [S, D] */

/* `unit` gets the rows before gain and shift, `rstd` [S] 1 / their deviation; both NULL without a backward pass.
   `unit` or `y` may be x. */
void norm_forward(long rows, long width, const float *x, const float *bias, const float *residual, const float *gain,
                  const float *shift, float eps, Noise noise, float *y, float *unit, float *rstd, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float keep[width + 16], h[width];
        Stream s = stream(noise, block);
        ones(width, keep);
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
            const float *x_ = x + row * width, *residual_ = residual + row * width;
            if (noise.dropped) factors(&s, noise, width, keep);
            v8 sum = all(0), squares = all(0);
            for (long c = 0; c < width; c += 8) {
                v8 value = V(residual_ + c) + V(keep + c) * (V(x_ + c) + V(bias + c));
                V(h + c) = value;
                sum += value;
            }
            const float mean = total(sum) / width;
            for (long c = 0; c < width; c += 8) {
                v8 value = V(h + c) - mean;
                squares += value * value;
            }
            const float r = 1.0f / sqrtf(total(squares) / width + eps);
            if (rstd) rstd[row] = r;
            for (long c = 0; c < width; c += 8) {
                v8 value = (V(h + c) - mean) * r;
                if (unit) V(unit + row * width + c) = value;
                V(y + row * width + c) = value * V(gain + c) + V(shift + c);
            }
        }
    }
}

/* From the gradient of y those of `residual` and of x; `sums` [ceil(S / BLOCK), 3, D]: of gain, shift and bias. */
void norm_backward(long rows, long width, const float *grad, const float *unit, const float *rstd, const float *gain,
                   Noise noise, float *d_residual, float *dx, float *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float keep[width + 16];
        float *d_gain = sums + block * 3 * width, *d_shift = d_gain + width, *d_bias = d_shift + width;
        memset(d_gain, 0, 3 * width * sizeof(float));
        Stream s = stream(noise, block);
        ones(width, keep);
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
            const float *g_ = grad + row * width, *u_ = unit + row * width;
            if (noise.dropped) factors(&s, noise, width, keep);
            v8 sum = all(0), along = all(0);
            for (long c = 0; c < width; c += 8) {
                v8 g = V(g_ + c), u = V(u_ + c);
                V(d_gain + c) += g * u;
                V(d_shift + c) += g;
                g *= V(gain + c);
                sum += g;
                along += g * u;
            }
            const float mean = total(sum) / width, slope = total(along) / width, r = rstd[row];
            for (long c = 0; c < width; c += 8) {
                v8 d = (V(g_ + c) * V(gain + c) - mean - V(u_ + c) * slope) * r;
                v8 kept = d * V(keep + c);
                V(d_residual + row * width + c) = d;
                V(dx + row * width + c) = kept;
                V(d_bias + c) += kept;
            }
        }
    }
}

/* ---- gelu(x + bias): [S, I] (Hendrycks & Gimpel 2016) */

/* The normal distribution's function at x less 1/2, and gelu's derivative less 1/2: x P(x^2) / Q(x^2) up to EDGE, found by
   weighted least squares; within 3e-7. Beyond EDGE the difference to 1/2 is smaller than that. */
#define EDGE 5.6f
static const float FUNCTION[2][6] = {
    {3.98942222e-01f, 3.43739570e-02f, 4.70711596e-03f, 1.73827372e-04f, 6.35623146e-06f, 2.21460975e-08f},
    {1.00000000e+00f, 2.52828448e-01f, 2.89388264e-02f, 1.91284678e-03f, 7.50936989e-05f, 1.18021284e-06f}};
static const float SLOPE[2][6] = {
    {7.97885345e-01f, -3.09749843e-02f, 1.42260487e-02f, 1.97582839e-05f, 3.58992759e-05f, 1.92166433e-07f},
    {1.00000000e+00f, 2.94520046e-01f, 4.09838759e-02f, 3.52265244e-03f, 1.92054106e-04f, 8.92813999e-06f}};

INLINE v8 half_and(v8 x, const float (*table)[6]) {
    v8 u = x * x, p = all(table[0][5]), q = all(table[1][5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; i--) p = p * u + table[0][i], q = q * u + table[1][i];
    i8 sign = (i8)x & (i8)all(-0.0f);
    return 0.5f + choose(u > all(EDGE * EDGE), (v8)(sign | (i8)all(0.5f)), x * p / q);
}

/* y may be x. */
void gelu_forward(long rows, long width, const float *x, const float *bias, float *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long c = 0; c < width; c += 8) {
            v8 value = V(x + row * width + c) + V(bias + c);
            V(y + row * width + c) = value * half_and(value, FUNCTION);
        }
}

/* Turns the gradient of y into that of x; `sums` [ceil(S / BLOCK), I]: of bias. */
void gelu_backward(long rows, long width, float *grad, const float *x, const float *bias, float *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float *d_bias = sums + block * width;
        memset(d_bias, 0, width * sizeof(float));
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++)
            for (long c = 0; c < width; c += 8) {
                v8 value = V(x + row * width + c) + V(bias + c);
                v8 d = V(grad + row * width + c) * half_and(value, SLOPE);
                V(grad + row * width + c) = d;
                V(d_bias + c) += d;
            }
    }
}

/* ---- attention */

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
