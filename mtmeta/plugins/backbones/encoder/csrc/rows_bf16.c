/* rows.c on bf16 arrays. Bias, gain, shift and all sums are fp32; shapes and names as there. */

#include "bf16.h"
#include "gelu.h"

/* y = LayerNorm(residual + dropout(x + bias)); `unit` and `rstd` NULL without a backward pass; `unit` or `y` may be x. */
void norm_forward_bf16(long rows, long width, const bf16 *x, const float *bias, const bf16 *residual, const float *gain,
                       const float *shift, float eps, Noise noise, bf16 *y, bf16 *unit, float *rstd, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float keep[width + 32], h[width];
        Stream16 s = stream16(noise, block);
        ones(width, keep);
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
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
}

/* From the gradients `grad` + `more` of y (`more` may be NULL) those of `residual` and of x; `sums`: of gain, shift, bias. */
void norm_backward_bf16(long rows, long width, const bf16 *grad, const bf16 *more, const bf16 *unit, const float *rstd,
                        const float *gain, Noise noise, bf16 *d_residual, bf16 *dx, float *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float keep[width + 32], given[width];
        float *d_gain = sums + block * 3 * width, *d_shift = d_gain + width, *d_bias = d_shift + width;
        memset(d_gain, 0, 3 * width * sizeof(float));
        Stream16 s = stream16(noise, block);
        ones(width, keep);
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++) {
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
}

INLINE v16 half_and16(v16 x, const float (*table)[6]) {
    v16 u = x * x, p = every(table[0][5]), q = every(table[1][5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; i--) p = p * u + table[0][i], q = q * u + table[1][i];
    i16 sign = (i16)x & (i16)every(-0.0f);
    return 0.5f + pick(u > every(EDGE * EDGE), (v16)(sign | (i16)every(0.5f)), ratio(x * p, q));
}

/* y = gelu(x + bias); y may be x. */
void gelu_forward_bf16(long rows, long width, const bf16 *x, const float *bias, bf16 *y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long row = 0; row < rows; row++)
        for (long c = 0; c < width; c += 16) {
            v16 value = load(x + row * width + c) + W(bias + c);
            store(y + row * width + c, value * half_and16(value, FUNCTION));
        }
}

/* Turns the gradient of y into that of x; `sums` [ceil(S / BLOCK), I]: of bias. */
void gelu_backward_bf16(long rows, long width, bf16 *grad, const bf16 *x, const float *bias, float *sums, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
        float *d_bias = sums + block * width;
        memset(d_bias, 0, width * sizeof(float));
        for (long row = block * BLOCK; row < least(rows, (block + 1) * BLOCK); row++)
            for (long c = 0; c < width; c += 16) {
                v16 value = load(x + row * width + c) + W(bias + c);
                v16 d = load(grad + row * width + c) * half_and16(value, SLOPE);
                store(grad + row * width + c, d);
                W(d_bias + c) += d;
            }
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
