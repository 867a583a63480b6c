/* The products of a layer by the processor's matrix unit (AMX), with what is done to rows before and after them while these
   are in the cache. Sums of a product are fp32 and rounded once. All widths and numbers of rows are multiples of 32; what
   lies beyond the last token is zeros.

   The unit takes 32 rows of 32 numbers from the left and 32 of 32 from the right in one step, and in L2 it is twice as fast
   where they lie one after another. So there are three layouts beside rows:

   tiles   of x [m, k]: [m / 16][k / 32][16][32], what stands left in a product
   pairs   of x [k, n]: [n / 32][k / 32][2][16][16] pairs of rows, what stands right
   blocks  of x [m, n]: [m / BLOCK][n / 32][BLOCK / 32][32][32], nearly in the order in which a product makes them

   Nothing here depends on the number of threads but how many rows are worked on at once. */

#include "amx.h"
#include "rows_bf16.h"

#if AMX

enum { STEP = 512 };   /* pairs of a step, and numbers of a tile */
enum { ROWS = 256 };    /* rows that go through a chain of products together, if threads are few */
enum { TOKENS = 1024 }; /* tokens that a weight's gradient is summed over at once, likewise */

#define TOUCH __asm__ volatile("" ::: "memory") /* a tile's load does not tell the compiler that it reads memory */

/* Fewer rows where all threads would not have two chunks of them. */
static long rows_of(long rows, int threads) {
    const long each = up_to(BLOCK, (rows + 2 * threads - 1) / (2 * threads));
    return least(ROWS, each > BLOCK ? each : BLOCK);
}

#define EACH_CHUNK(each) \
    _Pragma("omp parallel for num_threads(threads) schedule(dynamic, 1)") for (long first = 0; first < rows; first += each)

/* ---- layouts */

/* Rows to tiles. */
static void tile_rows(long rows, long k, const bf16 *x, bf16 *to) {
    for (long i = 0; i < rows; i += 16)
        for (long p = 0; p < k; p += 32, to += STEP)
            for (long r = 0; r < 16; r++) memcpy(to + 32 * r, x + (i + r) * k + p, 64);
}

/* 32 rows of x [.., a] to tiles of its transpose, `steps` of 32 rows in all. */
static void tile_columns(long a, const bf16 *x, long steps, bf16 *to) {
    for (long i = 0; i < a; i += 8)
        for (long t = 0; t < 32; t += 8) turn(x + t * a + i, a, to + i / 16 * steps * STEP + i % 16 * 32 + t, 32);
}

/* 32 rows of x [.., b] to pairs, `steps` of 32 rows in all. */
static void pair_step(long b, const bf16 *x, long steps, pair *to) {
    for (long j = 0; j < b; j += 16) pair_rows(32, 16, x + j, b, to + j / 32 * steps * STEP + j / 16 % 2 * STEP / 2);
}

/* ---- c [rows, n] = a [rows, k] b, and what becomes of it */

typedef enum { ROUND, ADD, ACTIVATE, BACK } Kind;

typedef struct {
    bf16 *c;             /* ROUND, ADD: rows */
    const float *bias;   /* ACTIVATE, BACK: [n] */
    bf16 *blocks;        /* c: ACTIVATE writes them, unless NULL, and BACK reads those of the forward pass */
    bf16 *tiles;         /* ACTIVATE: gelu(c + bias), BACK: its derivative there times c */
    float *sums;         /* BACK: of that, [ceil(rows / BLOCK), n] */
    pair *active, *wide; /* BACK: gelu, and what is in `tiles`, from the first of `steps` steps on */
    long steps;
    long rows; /* ACTIVATE, BACK */
} Result;

INLINE __m512i rounded(v16 low, v16 high) { return (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

INLINE void spread(__m512i x, v16 *low, v16 *high) {
    *low = (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(x)), 16);
    *high = (v16)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(x, 1)), 16);
}

/* Sixteen columns of two rows as pairs. */
INLINE void interleave(v16 upper, v16 lower, pair *to) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                           20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, rounded(upper, lower)));
}

/* Where 32 x 32 results belong. */
typedef struct {
    long i, j;
} Place;

/* Two rows of 32 sums, `row` and the next, to their places. */
INLINE void put(Kind kind, long n, const Result *to, Place at, long row, const float *sums) {
    v16 x[2][2] = {{W(sums), W(sums + 16)}, {W(sums + 32), W(sums + 48)}};
    if (kind == ROUND || kind == ADD) {
        for (int r = 0; r < 2; r++) {
            bf16 *c = to->c + (at.i + row + r) * n + at.j;
            if (kind == ADD) x[r][0] += load(c), x[r][1] += load(c + 16);
            _mm512_storeu_si512(c, rounded(x[r][0], x[r][1]));
        }
        return;
    }
    bf16 *tile = to->tiles + ((at.i + row) / 16 * (n / 32) + at.j / 32) * STEP + row % 16 * 32;
    const long group = at.i / BLOCK * BLOCK, tall = least(BLOCK, to->rows - group) / 32;
    bf16 *block = to->blocks ? to->blocks + group * n + (at.j / 32 * tall + at.i % BLOCK / 32) * 1024 + 32 * row : NULL;
    const float *bias = to->bias + at.j;
    if (kind == ACTIVATE) {
        for (int r = 0; r < 2; r++) {
            const __m512i before = rounded(x[r][0], x[r][1]);
            if (block) _mm512_storeu_si512(block + 32 * r, before);
            spread(before, &x[r][0], &x[r][1]);
            for (int h = 0; h < 2; h++) {
                x[r][h] += W(bias + 16 * h);
                x[r][h] *= half_and16(x[r][h], FUNCTION);
            }
            _mm512_storeu_si512(tile + 32 * r, rounded(x[r][0], x[r][1]));
        }
        return;
    }
    float *sum = to->sums + (at.i + row) / BLOCK * n + at.j;
    v16 active[2][2];
    for (int r = 0; r < 2; r++) {
        v16 value[2];
        spread(_mm512_loadu_si512(block + 32 * r), &value[0], &value[1]);
        for (int h = 0; h < 2; h++) {
            value[h] += W(bias + 16 * h);
            active[r][h] = value[h] * half_and16(value[h], FUNCTION);
            x[r][h] *= half_and16(value[h], SLOPE);
            W(sum + 16 * h) += x[r][h];
        }
        _mm512_storeu_si512(tile + 32 * r, rounded(x[r][0], x[r][1]));
    }
    const long place = (at.j / 32 * to->steps + at.i / 32) * STEP + row / 2 * 16;
    for (int h = 0; h < 2; h++) {
        interleave(active[0][h], active[1][h], to->active + place + h * STEP / 2);
        interleave(x[0][h], x[1][h], to->wide + place + h * STEP / 2);
    }
}

/* What comes from L2 each time must not drive out of L1 what stays there: a panel of up to `NEAR` steps. */
enum { NEAR = 14 };

#define LOAD_STEP(load_panel, upper, lower, panel) \
    do { \
        _tile_stream_loadd(4, upper, 64); \
        load_panel(6, panel, 64); \
        load_panel(7, panel + STEP / 2, 64); \
        _tile_stream_loadd(5, lower, 64); \
    } while (0)

INLINE void step32(int near, const bf16 *upper, const bf16 *lower, const pair *panel) {
    if (near)
        LOAD_STEP(_tile_loadd, upper, lower, panel);
    else
        LOAD_STEP(_tile_stream_loadd, upper, lower, panel);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
}

INLINE void no_sums(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void store_sums(float *to) {
    _tile_stored(0, to, 128);
    _tile_stored(1, to + 16, 128);
    _tile_stored(2, to + 16 * 32, 128);
    _tile_stored(3, to + 16 * 32 + 16, 128);
}

INLINE void multiply_panels(Kind kind, int near, long rows, long n, long k, const bf16 *a, const pair *b, const Result *to) {
    float sums[2][32 * 32] __attribute__((aligned(64)));
    const long steps = k / 32, tall = rows / 32, blocks = tall * (n / 32), each = (16 + steps - 1) / steps * 2;
    const long share = 2048 / tall;
    Place before = {0, 0};
    TOUCH;
    for (long block = 0; block < blocks; block++) {
        const Place at = {block % tall * 32, block / tall * 32};
        const bf16 *upper = a + at.i / 16 * steps * STEP, *lower = upper + steps * STEP;
        const pair *panel = b + at.j / 32 * steps * STEP;
        const float *old = sums[~block & 1];
        const char *coming = (const char *)(panel + steps * STEP) + at.i / 32 * share * steps; /* of the next panel */
        long row = block ? 0 : 32;
        no_sums();
        for (long step = 0; step < steps; step++, coming += share) {
            step32(near, upper + STEP * step, lower + STEP * step, panel + STEP * step);
            for (long byte = 0; byte < share; byte += 64) _mm_prefetch(coming + byte, _MM_HINT_T1);
            for (const long end = least(32, row + each); row < end; row += 2) put(kind, n, to, before, row, old + 32 * row);
        }
        store_sums(sums[block & 1]);
        TOUCH;
        before = at;
    }
    for (long row = 0; row < 32; row += 2) put(kind, n, to, before, row, sums[~blocks & 1] + 32 * row);
}

/* `a` in tiles, `b` in pairs. The unit works on 32 x 32 sums while those before are put to their places. */
static void multiply(Kind kind, long rows, long n, long k, const bf16 *a, const pair *b, const Result *to) {
#define ONE(kind_) \
    if (kind == kind_ && k / 32 <= NEAR) multiply_panels(kind_, 1, rows, n, k, a, b, to); \
    if (kind == kind_ && k / 32 > NEAR) multiply_panels(kind_, 0, rows, n, k, a, b, to)
    ONE(ROUND);
    ONE(ADD);
    ONE(ACTIVATE);
    ONE(BACK);
#undef ONE
}

/* ---- forward */

/* Bytes that a thread needs beside its arguments. */
long layer_room_bf16(long width, long wide) { return ROWS * (2 * width + wide) * (long)sizeof(bf16); }

/* y [S, N] = x [S, K] b. */
void product_bf16(long rows, long n, long k, const bf16 *x, const pair *b, bf16 *y, char *rooms, long room_each,
                  int threads) {
    EACH_CHUNK(BLOCK) {
        const long count = least(BLOCK, rows - first);
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD);
        tile_rows(count, k, x + first * k, tiles);
        begin_tiles();
        multiply(ROUND, count, n, k, tiles, b, &(Result){.c = y + first * n});
        _tile_release();
    }
}

INLINE void norm_chunk(long first, long count, long width, const bf16 *x, const float *bias, const bf16 *residual,
                       const float *gain, const float *shift, float eps, Noise noise, bf16 *y, bf16 *unit, float *rstd) {
    for (long at = first; at < first + count; at += BLOCK)
        norm_rows(least(BLOCK, first + count - at), width, x + (at - first) * width, bias, residual + at * width, gain, shift,
                  eps, noise, at / BLOCK, y + at * width, unit ? unit + at * width : NULL, rstd ? rstd + at : NULL);
}

/* y = LayerNorm(residual + dropout(x W + bias)); as norm_forward_bf16. */
void out_forward_bf16(long rows, long width, const bf16 *x, const pair *out, const float *bias, const bf16 *residual,
                      const float *gain, const float *shift, float eps, Noise noise, bf16 *y, bf16 *unit, float *rstd,
                      char *rooms, long room_each, int threads) {
    const long each = rows_of(rows, threads);
    EACH_CHUNK(each) {
        const long count = least(each, rows - first);
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD), *product = tiles + ROWS * width;
        tile_rows(count, width, x + first * width, tiles);
        begin_tiles();
        multiply(ROUND, count, width, width, tiles, out, &(Result){.c = product});
        _tile_release();
        norm_chunk(first, count, width, product, bias, residual, gain, shift, eps, noise, y, unit, rstd);
    }
}

/* y = LayerNorm(x + dropout(gelu(x U + bias) W + bias)). What a backward pass needs is left in `wider` (blocks of x U),
   `unit` and `rstd`, or these are NULL. */
void feed_forward_bf16(long rows, long width, long wide, const bf16 *x, const pair *up, const float *up_bias,
                       const pair *down, const float *down_bias, const float *gain, const float *shift, float eps,
                       Noise noise, bf16 *wider, bf16 *y, bf16 *unit, float *rstd, char *rooms, long room_each,
                       int threads) {
    const long each = rows_of(rows, threads);
    EACH_CHUNK(each) {
        const long count = least(each, rows - first);
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD), *product = tiles + ROWS * width;
        bf16 *active = product + ROWS * width;
        tile_rows(count, width, x + first * width, tiles);
        const Result gelu = {.bias = up_bias, .blocks = wider ? wider + first * wide : NULL, .tiles = active, .rows = count};
        begin_tiles();
        multiply(ACTIVATE, count, wide, width, tiles, up, &gelu);
        multiply(ROUND, count, width, wide, active, down, &(Result){.c = product});
        _tile_release();
        norm_chunk(first, count, width, product, down_bias, x, gain, shift, eps, noise, y, unit, rstd);
    }
}

/* ---- backward: chunk by chunk of tokens, first their gradients and then the sums over them */

static long chunk_of(long rows, int threads) {
    const long each = rows_of(rows, threads), chunk = up_to(each, TOKENS > each * threads ? TOKENS : each * threads);
    return least(up_to(each, rows), chunk);
}

/* A weight's gradient x^T y, [a, b]: tiles of x^T and pairs of y for a chunk, and sums in blocks of 32 x 32. */
typedef struct {
    long a, b;
    bf16 *left;
    pair *right;
    float *sums;
    float *result; /* [a, b], or [b, a] if `turned`; NULL if it is not wanted */
    int turned;
} Gradient;

/* Bytes of what all threads share. */
static long gradient_room(long chunk, long a, long b) { return chunk * (a + b) * 2 + a * b * 4 + 3 * 64; }

static Gradient gradient(long chunk, long a, long b, float *result, int turned, char **room) {
    bf16 *left = part(room, chunk * a * 2);
    pair *right = part(room, chunk * b * 2);
    return (Gradient){a, b, left, right, part(room, a * b * 4), result, turned};
}

static void write_block(const Gradient *g, long i, long j, const float *sums) {
    const __m512i column = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                              _mm512_set1_epi32(32));
    for (long r = 0; r < 32; r++)
        for (long c = 0; c < 32; c += 16)
            if (g->turned)
                W(g->result + (j + r) * g->a + i + c) = (v16)_mm512_i32gather_ps(column, sums + 32 * c + r, 4);
            else
                W(g->result + (i + r) * g->b + j + c) = W(sums + 32 * r + c);
}

/* Add a chunk of `steps` x 32 tokens to columns j to j + 32. */
static void add_tokens(const Gradient *g, long j, long steps, int is_first, int is_last) {
    const pair *panel = g->right + j / 32 * steps * STEP;
    for (long i = 0; i < g->a; i += 32) {
        const bf16 *upper = g->left + i / 16 * steps * STEP, *lower = upper + steps * STEP;
        float *sums = g->sums + (j / 32 * (g->a / 32) + i / 32) * 1024;
        TOUCH;
        if (is_first)
            no_sums();
        else {
            _tile_loadd(0, sums, 128);
            _tile_loadd(1, sums + 16, 128);
            _tile_loadd(2, sums + 16 * 32, 128);
            _tile_loadd(3, sums + 16 * 32 + 16, 128);
        }
        for (long step = 0; step < steps; step++)
            step32(0, upper + STEP * step, lower + STEP * step, panel + STEP * step);
        store_sums(sums);
        TOUCH;
        if (is_last) write_block(g, i, j, sums);
    }
}

#define EACH_SHARED_CHUNK \
    for (long first = 0, steps = least(chunk, rows) / 32; first < rows; \
         first += chunk, steps = least(chunk, rows - first) / 32)

#define EACH_OF_IT \
    _Pragma("omp for schedule(dynamic, 1)") for (long at = first; at < least(rows, first + chunk); at += each)

#define SUM(g, columns) \
    _Pragma("omp for schedule(static)") for (long j = 0; j < columns; j += 32) if ((g).result) \
        add_tokens(&(g), j, steps, first == 0, first + chunk >= rows)

INLINE void norm_backward_chunk(long at, long count, long width, const bf16 *grad, const bf16 *unit, const float *rstd,
                                const float *gain, Noise noise, bf16 *d_residual, bf16 *d_unit, float *sums) {
    for (long b = at; b < at + count; b += BLOCK)
        norm_backward_rows(least(BLOCK, at + count - b), width, grad + b * width, NULL, unit + b * width, rstd + b, gain,
                           noise, b / BLOCK, d_residual + b * width, d_unit + (b - at) * width,
                           sums + b / BLOCK * 3 * width);
}

/* Bytes that all threads share beside those of layer_room_bf16. */
long feed_room_bf16(long rows, long width, long wide, int threads) {
    return 2 * gradient_room(chunk_of(rows, threads), width, wide);
}

/* From the gradient of y those of x, `d_x`; of the weights, unless NULL; and sums by blocks of rows: of gain, shift and bias
   [.., 3, D], of the first bias [.., I]. */
void feed_backward_bf16(long rows, long width, long wide, const bf16 *grad, const bf16 *unit, const float *rstd,
                        const float *gain, Noise noise, const pair *down, const bf16 *wider, const float *up_bias,
                        const pair *up, const bf16 *x, bf16 *d_x, float *d_down, float *d_up, float *sums, float *up_sums,
                        char *shared, char *rooms, long room_each, int threads) {
    const long each = rows_of(rows, threads), chunk = chunk_of(rows, threads);
    const Gradient of_down = gradient(chunk, width, wide, d_down, 0, &shared);
    const Gradient of_up = gradient(chunk, width, wide, d_up, 1, &shared);
#pragma omp parallel num_threads(threads)
    {
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD), *d_unit = tiles + ROWS * width, *d_wide = d_unit + ROWS * width;
        begin_tiles();
        EACH_SHARED_CHUNK {
            EACH_OF_IT {
                const long count = least(each, rows - at), step = (at - first) / 32;
                norm_backward_chunk(at, count, width, grad, unit, rstd, gain, noise, d_x, d_unit, sums);
                for (long i = 0; i < count; i += 32) {
                    tile_columns(width, d_unit + i * width, steps, of_down.left + (step + i / 32) * STEP);
                    tile_columns(width, x + (at + i) * width, steps, of_up.left + (step + i / 32) * STEP);
                }
                tile_rows(count, width, d_unit, tiles);
                memset(up_sums + at / BLOCK * wide, 0, (count + BLOCK - 1) / BLOCK * wide * sizeof(float));
                const Result slope = {.bias = up_bias, .blocks = (bf16 *)wider + at * wide, .tiles = d_wide,
                                      .sums = up_sums + at / BLOCK * wide, .active = of_down.right + step * STEP,
                                      .wide = of_up.right + step * STEP, .steps = steps, .rows = count};
                multiply(BACK, count, wide, width, tiles, down, &slope);
                multiply(ADD, count, width, wide, d_wide, up, &(Result){.c = d_x + at * width});
            }
            SUM(of_down, wide);
            SUM(of_up, wide);
        }
        _tile_release();
    }
}

long out_room_bf16(long rows, long width, int threads) {
    return gradient_room(chunk_of(rows, threads), width, width);
}

/* From the gradient of y those of the residual; of x, the attention's result; and of the weight, unless NULL. */
void out_backward_bf16(long rows, long width, const bf16 *grad, const bf16 *unit, const float *rstd, const float *gain,
                       Noise noise, const pair *out, const bf16 *x, bf16 *d_residual, bf16 *d_x, float *d_out, float *sums,
                       char *shared, char *rooms, long room_each, int threads) {
    const long each = rows_of(rows, threads), chunk = chunk_of(rows, threads);
    const Gradient of_out = gradient(chunk, width, width, d_out, 0, &shared);
#pragma omp parallel num_threads(threads)
    {
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD), *d_unit = tiles + ROWS * width;
        begin_tiles();
        EACH_SHARED_CHUNK {
            EACH_OF_IT {
                const long count = least(each, rows - at), step = (at - first) / 32;
                norm_backward_chunk(at, count, width, grad, unit, rstd, gain, noise, d_residual, d_unit, sums);
                for (long i = 0; i < count; i += 32) {
                    tile_columns(width, d_unit + i * width, steps, of_out.left + (step + i / 32) * STEP);
                    pair_step(width, x + (at + i) * width, steps, of_out.right + (step + i / 32) * STEP);
                }
                tile_rows(count, width, d_unit, tiles);
                multiply(ROUND, count, width, width, tiles, out, &(Result){.c = d_x + at * width});
            }
            SUM(of_out, width);
        }
        _tile_release();
    }
}

long qkv_room_bf16(long rows, long width, int threads) {
    return gradient_room(chunk_of(rows, threads), width, 3 * width);
}

/* Add to `d_x` what comes from the gradient of x W, [S, 3 D]; and compute that of the weight, unless NULL. */
void qkv_backward_bf16(long rows, long width, const bf16 *grad, const pair *qkv, const bf16 *x, bf16 *d_x, float *d_qkv,
                       char *shared, char *rooms, long room_each, int threads) {
    const long each = rows_of(rows, threads), chunk = chunk_of(rows, threads);
    const Gradient of_qkv = gradient(chunk, width, 3 * width, d_qkv, 1, &shared);
#pragma omp parallel num_threads(threads)
    {
        bf16 *tiles = (bf16 *)(rooms + room_each * THREAD);
        begin_tiles();
        EACH_SHARED_CHUNK {
            EACH_OF_IT {
                const long count = least(each, rows - at), step = (at - first) / 32;
                for (long i = 0; i < count; i += 32) {
                    tile_columns(width, x + (at + i) * width, steps, of_qkv.left + (step + i / 32) * STEP);
                    pair_step(3 * width, grad + (at + i) * 3 * width, steps, of_qkv.right + (step + i / 32) * STEP);
                }
                tile_rows(count, 3 * width, grad + at * 3 * width, tiles);
                multiply(ADD, count, width, 3 * width, tiles, qkv, &(Result){.c = d_x + at * width});
            }
            SUM(of_qkv, 3 * width);
        }
        _tile_release();
    }
}

/* ---- weights */

/* 32 x 32 numbers of W + scale B A: from `weight` on, of B^T [rank, n] and A [rank, k] from its row and column on. */
INLINE void store_sums_of_rank(long n, long k, const float *weight, const float *a, const float *b, long rank, float scale,
                               bf16 *square) {
    for (long r = 0; r < 32; r += 8)
        for (long c = 0; c < 32; c += 16) {
            v16 more[8] = {0}; /* eight rows, for one sum waits for itself */
            for (long q = 0; q < rank; q++) {
                const v16 at = W(a + q * k + c);
#pragma GCC unroll 8
                for (int e = 0; e < 8; e++) more[e] += b[q * n + r + e] * at;
            }
#pragma GCC unroll 8
            for (int e = 0; e < 8; e++) store(square + 32 * (r + e) + c, W(weight + (r + e) * k + c) + scale * more[e]);
        }
}

/* A weight [N, K] in fp32, or weight + scale b^T a, b [rank, N], a [rank, K], as pairs for products with its transpose, and
   for those with itself unless `plain` is NULL. */
void pair_weights(long n, long k, const float *weight, const float *a, const float *b, long rank, float scale,
                  pair *transposed, pair *plain, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += 32)
        for (long p = 0; p < k; p += 32) {
            bf16 square[32 * 32];
            for (long r = 0; r < 32; r++)
                for (long c = 32; c < 64; c += 16) _mm_prefetch(weight + (i + r) * k + p + c, _MM_HINT_T0); /* the next */
            if (rank)
                store_sums_of_rank(n, k, weight + i * k + p, a + p, b + i, rank, scale, square);
            else
                for (long r = 0; r < 32; r++)
                    for (long c = 0; c < 32; c += 16) store(square + 32 * r + c, W(weight + (i + r) * k + p + c));
            for (long half = 0; half < 2; half++) {
                pair *to = transposed + (i * k / 32 + p) / 32 * STEP + half * STEP / 2;
                pair_columns(16, 32, square + half * 16 * 32, 32, to);
                to = plain + (p * n / 32 + i) / 32 * STEP + half * STEP / 2;
                if (plain) pair_rows(32, 16, square + half * 16, 32, to);
            }
        }
}

enum { TALL = 64 };      /* rows of a weight whose part of A's gradient is summed up together */
enum { AHEAD = 8 };
enum { ACROSS = 384 };   /* columns that stay in L1 meanwhile */

long rank_blocks(long n) { return (n + TALL - 1) / TALL; }

/* Of `q` rows of A, and up to TALL rows of a weight [.., k] and of B: the gradients by that of the weight. */
INLINE void rank_rows(int q, long rows, long k, const float *grad, const float *a, const float *b, long rank, float scale,
                      float *d_a, float *d_b) {
    /* sixteen columns of each row of A, and of its gradient, and so on */
    float near[2 * 8 * ACROSS] __attribute__((aligned(64)));
    for (long left = 0; left < k; left += ACROSS) {
        const long wide = least(ACROSS, k - left);
        for (long c = 0; c < wide; c += 16)
            for (int e = 0; e < q; e++) {
                float *to = near + 2 * c * q + 16 * e;
                W(to) = W(a + e * k + left + c), W(to + 16 * q) = (v16){0};
            }
        for (long i = 0; i < rows; i += 2) {
            const float *of = b + i * rank, *row = grad + i * k + left;
            v16 upper[8] = {0}, lower[8] = {0};
            for (long c = 0; c < wide; c += 16) {
                const v16 x = W(row + c), y = W(row + k + c);
                _mm_prefetch(row + AHEAD * k + c, _MM_HINT_T0);
                _mm_prefetch(row + (AHEAD + 1) * k + c, _MM_HINT_T0);
#pragma GCC unroll 8
                for (int e = 0; e < q; e++) {
                    float *to = near + 2 * c * q + 16 * e;
                    const v16 of_a = W(to);
                    upper[e] += x * of_a, lower[e] += y * of_a;
                    v16 sum = W(to + 16 * q);
                    sum += of[e] * x;
                    sum += of[rank + e] * y;
                    W(to + 16 * q) = sum;
                }
            }
#pragma GCC unroll 8
            for (int e = 0; e < q; e++) {
                d_b[i * rank + e] = (left ? d_b[i * rank + e] : 0) + scale * whole(upper[e]);
                d_b[(i + 1) * rank + e] = (left ? d_b[(i + 1) * rank + e] : 0) + scale * whole(lower[e]);
            }
        }
        for (long c = 0; c < wide; c += 16)
            for (int e = 0; e < q; e++) W(d_a + e * k + left + c) = W(near + 2 * c * q + 16 * (q + e));
    }
}

/* From the gradient of weight + scale b a, [N, K]: those of b [N, rank], and of a without the scale, by TALL rows of the
   weight, [rank_blocks(N), rank, K]. */
void rank_backward(long n, long k, const float *grad, const float *a, const float *b, long rank, float scale, float *d_a,
                   float *d_b, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long i = 0; i < n; i += TALL)
        for (long q = 0, more; q < rank; q += more) {
            more = rank - q >= 8 ? 8 : rank - q >= 4 ? 4 : 1;
#define SOME(q_) \
    if (more == q_) \
    rank_rows(q_, least(TALL, n - i), k, grad + i * k, a + q * k, b + i * rank + q, rank, scale, \
              d_a + (i / TALL * rank + q) * k, d_b + i * rank + q)
            SOME(8);
            SOME(4);
            SOME(1);
#undef SOME
        }
}

#endif
