/* What is done to rows of bf16 numbers between two products, for at most BLOCK rows, which have their own random bits and
   sums. Pointers are to the first of the rows. Bias, gain, shift and all sums are fp32; shapes and names as in rows.c. */

#pragma once

#include "bf16.h"
#include "gelu.h"

/* y = LayerNorm(residual + dropout(x + bias)); `unit` and `rstd` NULL without a backward pass; `unit` or `y` may be x. */
INLINE void norm_rows(long rows, long width, const bf16 *x, const float *bias, const bf16 *residual, const float *gain,
                      const float *shift, float eps, Noise noise, long block, bf16 *y, bf16 *unit, float *rstd) {
    float keep[width + 32], h[width];
    Stream16 s = stream16(noise, block);
    ones(width, keep);
    for (long row = 0; row < rows; row++) {
        const bf16 *x_ = x + row * width, *residual_ = residual + row * width;
        if (noise.dropped) factors16(&s, noise, width, keep);
        v16 sum = every(0), squares = every(0);
        for (long c = 0; c < width; c += 16) {
            v16 value = load(residual_ + c) + W(keep + c) * (load(x_ + c) + W(bias + c));
            W(h + c) = value;
            sum += value;
        }
        const float mean = whole(sum) / width;
        for (long c = 0; c < width; c += 16) {
            v16 value = W(h + c) - mean;
            squares += value * value;
        }
        const float r = 1.0f / sqrtf(whole(squares) / width + eps);
        if (rstd) rstd[row] = r;
        for (long c = 0; c < width; c += 16) {
            v16 value = (W(h + c) - mean) * r;
            if (unit) store(unit + row * width + c, value);
            store(y + row * width + c, value * W(gain + c) + W(shift + c));
        }
    }
}

/* From the gradients `grad` + `more` of y (`more` may be NULL) those of `residual` and of x (both may be in one place
   without dropout); `sums` [3, D]: of gain, shift, bias. */
INLINE void norm_backward_rows(long rows, long width, const bf16 *grad, const bf16 *more, const bf16 *unit,
                               const float *rstd, const float *gain, Noise noise, long block, bf16 *d_residual, bf16 *dx,
                               float *sums) {
    float keep[width + 32], given[width];
    float *d_gain = sums, *d_shift = d_gain + width, *d_bias = d_shift + width;
    memset(d_gain, 0, 3 * width * sizeof(float));
    Stream16 s = stream16(noise, block);
    ones(width, keep);
    for (long row = 0; row < rows; row++) {
        const bf16 *g_ = grad + row * width, *u_ = unit + row * width;
        if (noise.dropped) factors16(&s, noise, width, keep);
        v16 sum = every(0), along = every(0);
        for (long c = 0; c < width; c += 16) {
            v16 g = load(g_ + c), u = load(u_ + c);
            if (more) g += load(more + row * width + c);
            W(d_gain + c) += g * u;
            W(d_shift + c) += g;
            g *= W(gain + c);
            W(given + c) = g;
            sum += g;
            along += g * u;
        }
        const float mean = whole(sum) / width, slope = whole(along) / width, r = rstd[row];
        for (long c = 0; c < width; c += 16) {
            v16 d = (W(given + c) - mean - load(u_ + c) * slope) * r;
            v16 kept = d * W(keep + c);
            store(d_residual + row * width + c, d);
            if (dx != d_residual) store(dx + row * width + c, kept);
            W(d_bias + c) += kept;
        }
    }
}

INLINE v16 half_and16(v16 x, const float (*table)[6]) {
    v16 u = x * x, p = every(table[0][5]), q = every(table[1][5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; i--) p = p * u + table[0][i], q = q * u + table[1][i];
    i16 sign = (i16)x & (i16)every(-0.0f);
    return 0.5f + pick(u > every(EDGE * EDGE), (v16)(sign | (i16)every(0.5f)), ratio(x * p, q));
}

/* y = gelu(x + bias); y may be x. */
INLINE void gelu_row(long width, const bf16 *x, const float *bias, bf16 *y) {
    for (long c = 0; c < width; c += 16) {
        v16 value = load(x + c) + W(bias + c);
        store(y + c, value * half_and16(value, FUNCTION));
    }
}

/* From the gradient of y that of x, `dx`, which may be in its place; `sums` [I]: of bias. */
INLINE void gelu_backward_rows(long rows, long width, const bf16 *grad, const bf16 *x, const float *bias, bf16 *dx,
                               float *sums) {
    memset(sums, 0, width * sizeof(float));
    for (long row = 0; row < rows; row++)
        for (long c = 0; c < width; c += 16) {
            v16 value = load(x + row * width + c) + W(bias + c);
            v16 d = load(grad + row * width + c) * half_and16(value, SLOPE);
            store(dx + row * width + c, d);
            W(sums + c) += d;
        }
}
