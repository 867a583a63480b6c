/* What lies between the matrix products of a BERT layer, row by row, forward and backward: bias, dropout, residual and
   LayerNorm in one pass over the arrays; gelu with its bias in another. */

#include "gelu.h"
#include "vector.h"

/* BLOCK rows, a number given by kernels.py, have sums and random bits of their own. */

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
