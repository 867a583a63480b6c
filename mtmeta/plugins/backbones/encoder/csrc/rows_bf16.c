/* rows_bf16.h on whole arrays, and transposition. */

#include "rows_bf16.h"

#define EACH_BLOCK \
    _Pragma("omp parallel for num_threads(threads) schedule(static)") \
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++)
#define FIRST (block * BLOCK)
#define COUNT least(BLOCK, rows - FIRST)

void norm_forward_bf16(long rows, long width, const bf16 *x, const float *bias, const bf16 *residual, const float *gain,
                       const float *shift, float eps, Noise noise, bf16 *y, bf16 *unit, float *rstd, int threads) {
    EACH_BLOCK {
        const long at = FIRST * width;
        norm_rows(COUNT, width, x + at, bias, residual + at, gain, shift, eps, noise, block, y + at,
                  unit ? unit + at : NULL, rstd ? rstd + FIRST : NULL);
    }
}

/* `sums` [ceil(S / BLOCK), 3, D]. */
void norm_backward_bf16(long rows, long width, const bf16 *grad, const bf16 *more, const bf16 *unit, const float *rstd,
                        const float *gain, Noise noise, bf16 *d_residual, bf16 *dx, float *sums, int threads) {
    EACH_BLOCK {
        const long at = FIRST * width;
        norm_backward_rows(COUNT, width, grad + at, more ? more + at : NULL, unit + at, rstd + FIRST, gain, noise, block,
                           d_residual + at, dx + at, sums + block * 3 * width);
    }
}

void gelu_forward_bf16(long rows, long width, const bf16 *x, const float *bias, bf16 *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++) gelu_row(width, x + row * width, bias, y + row * width);
}

/* Turns the gradient of y into that of x; `sums` [ceil(S / BLOCK), I]: of bias. */
void gelu_backward_bf16(long rows, long width, bf16 *grad, const bf16 *x, const float *bias, float *sums, int threads) {
    EACH_BLOCK {
        const long at = FIRST * width;
        gelu_backward_rows(COUNT, width, grad + at, x + at, bias, grad + at, sums + block * width);
    }
}

/* ---- transposition, for products that sum over tokens: [S, D] -> [D, S] */

void transpose_bf16(long rows, long width, const bf16 *x, bf16 *to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        const long first = block * BLOCK, end = least(rows, first + BLOCK), even = first + (end - first) / 8 * 8;
        for (long c = 0; c < width; c += 8) {
            for (long row = first; row < even; row += 8) turn(x + row * width + c, width, to + c * rows + row, rows);
            for (long row = even; row < end; row++)
                for (long j = 0; j < 8; j++) to[(c + j) * rows + row] = x[row * width + c + j];
        }
    }
}

/* The same of a product's result, in fp32, [m, n] -> [n, m]: of multiples of 8. */
void transpose_to_fp32(long rows, long width, const bf16 *x, float *to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long c = 0; c < width; c += 8)
        for (long row = 0; row < rows; row += 8) {
            bf16 turned[64];
            turn(x + row * width + c, width, turned, 8);
            for (long j = 0; j < 8; j++)
                for (long i = 0; i < 8; i++) {
                    const uint32_t bits = (uint32_t)turned[8 * j + i] << 16;
                    memcpy(to + (c + j) * rows + row + i, &bits, 4);
                }
        }
}
