/* The blocks of impala.py forward and backward, in float32 on one thread of a CPU.
 *
 * Pictures are (height, width, channels). A 3x3 convolution reads a copy of its input with a border
 * of zeros, in which the three pixels of a row under the kernel lie side by side: for each row of
 * the kernel it is one product with a matrix of 3 * inputs rows. Sums are kept in registers, for
 * PIXELS pixels (or PIXELS rows of a weight's gradient) and LANES channels at a time.
 *
 * Weights and their gradients come packed, (outputs / LANES, 3, 3 * inputs, LANES).
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HALF = 8, LANES = 2 * HALF, PIXELS = 6, STRIP = 4 };

typedef float Floats __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(HALF), aligned(1), may_alias));

typedef struct {
    long height, width, inputs, outputs;
} Shape;

static inline Floats load(const float *from) { return *(const Floats *)from; }
static inline void store(float *to, Floats value) { *(Floats *)to = value; }
static inline Floats only(Words mask, Floats value) { return (Floats)(mask & (Words)value); }

static float *rows_with_border(Shape shape, long channels) {
    return calloc((shape.height + 2) * (shape.width + 2) * channels, sizeof(float));
}

/* The picture into the middle of a buffer with a border, its negative values as zeros if asked. */
static void copy_inside(Shape shape, long channels, const float *picture, int relu, float *buffer) {
    long row = shape.width * channels;
    for (long y = 0; y < shape.height; y++) {
        float *to = buffer + (y + 1) * (row + 2 * channels) + channels;
        const float *from = picture + y * row;
        if (!relu)
            memcpy(to, from, row * sizeof(float));
        else
            for (long i = 0; i < row; i++) to[i] = from[i] < 0 ? 0 : from[i];
    }
}

/* What happens to a convolution's sums before they are stored; all but `out` may be missing. */
typedef struct {
    const float *bias, *add; /* `add`: a picture */
    const float *where;      /* a picture: zero where it is not positive */
    int relu;
    float *out;
} Finish;

static inline __attribute__((always_inline)) void finish(Finish to, long at, long lane, Floats sum) {
    if (to.bias) sum += load(to.bias + lane);
    if (to.relu) sum = only(~(sum < 0), sum);
    if (to.where) sum = only(~(load(to.where + at) <= 0), sum);
    if (to.add) sum += load(to.add + at);
    store(to.out + at, sum);
}

static inline __attribute__((always_inline)) void some_pixels(
    const int count, Shape shape, const float *from, const float *weight, Finish to, long at,
    long lane) {
    const long step = shape.inputs, row = (shape.width + 2) * step, run = 3 * step;
    Floats sums[PIXELS][2] = {0};
    for (int line = 0; line < 3; line++, from += row)
        for (long i = 0; i < run; i++, weight += LANES) {
            Floats first = load(weight), second = load(weight + HALF);
#pragma GCC unroll 6
            for (int p = 0; p < count; p++) {
                float value = from[p * step + i];
                sums[p][0] += value * first;
                sums[p][1] += value * second;
            }
        }
#pragma GCC unroll 6
    for (int p = 0; p < count; p++) {
        finish(to, at + p * shape.outputs, lane, sums[p][0]);
        finish(to, at + p * shape.outputs + HALF, lane + HALF, sums[p][1]);
    }
}

static void convolve(Shape shape, const float *bordered, const float *weights, Finish to) {
    for (long lane = 0; lane < shape.outputs; lane += LANES, weights += 9 * shape.inputs * LANES)
        for (long y = 0; y < shape.height; y++) {
            const float *from = bordered + y * (shape.width + 2) * shape.inputs;
            long at = y * shape.width * shape.outputs + lane, left = shape.width;
#define TAKE(n)                                                             \
    some_pixels(n, shape, from, weights, to, at, lane);                     \
    from += n * shape.inputs, at += n * shape.outputs, left -= n
            while (left >= 6 && left != 8) {
                TAKE(6);
            }
            while (left >= 4) {
                TAKE(4);
            }
            while (left > 0) {
                TAKE(1);
            }
#undef TAKE
        }
}

static inline __attribute__((always_inline)) void some_rows(
    const int count, Shape shape, const float *from, const float *gradient, long lines, float *to) {
    const long in_row = (shape.width + 2) * shape.inputs;
    const long out_row = (shape.width + 2) * shape.outputs;
    Floats sums[PIXELS][2];
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
        sums[r][0] = load(to + r * LANES), sums[r][1] = load(to + r * LANES + HALF);
    for (long line = 0; line < lines; line++) {
        const float *x = from + line * in_row, *g = gradient + line * out_row;
        for (long i = 0; i < shape.width; i++, x += shape.inputs, g += shape.outputs) {
            Floats first = load(g), second = load(g + HALF);
#pragma GCC unroll 6
            for (int r = 0; r < count; r++) {
                sums[r][0] += x[r] * first;
                sums[r][1] += x[r] * second;
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < count; r++)
        store(to + r * LANES, sums[r][0]), store(to + r * LANES + HALF, sums[r][1]);
}

/* Adds to the gradients of weights and bias; the outputs' gradient has a border as well. */
static void weight_gradient(
    Shape shape, const float *bordered, const float *gradient, float *weights, float *bias) {
    const long in_row = (shape.width + 2) * shape.inputs;
    const long out_row = (shape.width + 2) * shape.outputs, run = 3 * shape.inputs;
    gradient += out_row + shape.outputs;
    for (long top = 0; top < shape.height; top += STRIP) {
        long lines = shape.height - top < STRIP ? shape.height - top : STRIP;
        const float *g = gradient + top * out_row;
        for (long lane = 0; lane < shape.outputs; lane += LANES)
            for (long kernel = 0; kernel < 3; kernel++) {
                const float *x = bordered + (top + kernel) * in_row;
                float *to = weights + (lane * 3 + kernel * LANES) * run;
                long r = 0;
                for (; r + PIXELS <= run; r += PIXELS)
                    some_rows(PIXELS, shape, x + r, g + lane, lines, to + r * LANES);
                for (; r < run; r++) some_rows(1, shape, x + r, g + lane, lines, to + r * LANES);
            }
        for (long line = 0; line < lines; line++)
            for (long i = 0; i < shape.width; i++)
                for (long o = 0; o < shape.outputs; o++)
                    bias[o] += g[line * out_row + i * shape.outputs + o];
    }
}

/* Maximum over 3x3 with stride 2 and border 1; `winner` (may be missing) is 0..8, the first of
 * equals, as torch has it. */
static void pool(Shape shape, const float *picture, float *out, uint8_t *winner) {
    long channels = shape.outputs;
    for (long y = 0; y < shape.height; y += 2)
        for (long x = 0; x < shape.width; x += 2)
            for (long c = 0; c < channels; c += HALF, out += HALF) {
                Floats best = {0};
                Words place = {0}, none = {0};
                int started = 0;
                for (int tap = 0; tap < 9; tap++) {
                    long py = y + tap / 3 - 1, px = x + tap % 3 - 1;
                    if (py < 0 || px < 0 || py >= shape.height || px >= shape.width) continue;
                    Floats value = load(picture + (py * shape.width + px) * channels + c);
                    if (!started) {
                        best = value, place = none + tap, started = 1;
                        continue;
                    }
                    Words better = (value > best) | (value != value);
                    best = (Floats)((better & (Words)value) | (~better & (Words)best));
                    place = (better & tap) | (~better & place);
                }
                store(out, best);
                if (winner) {
                    *(Bytes *)winner = __builtin_convertvector(place, Bytes);
                    winner += HALF;
                }
            }
}

/* Into a buffer with a border; what lands in the border is never read as a gradient. */
static void pool_gradient(
    Shape shape, const float *gradient, const uint8_t *winner, float *bordered) {
    long channels = shape.outputs, row = (shape.width + 2) * channels;
    memset(bordered, 0, (shape.height + 2) * row * sizeof(float));
    for (long y = 0; y < shape.height; y += 2)
        for (long x = 0; x < shape.width; x += 2)
            for (long c = 0; c < channels; c += HALF, gradient += HALF, winner += HALF) {
                Words place = __builtin_convertvector(*(const Bytes *)winner, Words);
                Floats value = load(gradient);
                for (int tap = 0; tap < 9; tap++) {
                    float *to = bordered + (y + tap / 3) * row + (x + tap % 3) * channels + c;
                    store(to, load(to) + only(place == tap, value));
                }
            }
}

void impala_stem(long count, Shape shape, const float *x, const float *weights, const float *bias,
                 float *out, uint8_t *winner) {
    long size = shape.height * shape.width;
    long pooled = (shape.height + 1) / 2 * ((shape.width + 1) / 2) * shape.outputs;
    float *bordered = rows_with_border(shape, shape.inputs);
    float *whole = malloc(size * shape.outputs * sizeof(float));
    for (long i = 0; i < count; i++) {
        copy_inside(shape, shape.inputs, x + i * size * shape.inputs, 0, bordered);
        convolve(shape, bordered, weights, (Finish){.bias = bias, .out = whole});
        pool(shape, whole, out + i * pooled, winner ? winner + i * pooled : 0);
    }
    free(bordered), free(whole);
}

/* `turned`: the weights for the inputs' gradient; `input_gradient` may be missing. */
void impala_stem_backward(long count, Shape shape, const float *x, const float *turned,
                          const uint8_t *winner, const float *gradient, float *input_gradient,
                          float *weight_gradients, float *bias_gradients) {
    long size = shape.height * shape.width;
    long pooled = (shape.height + 1) / 2 * ((shape.width + 1) / 2) * shape.outputs;
    Shape back = {shape.height, shape.width, shape.outputs, shape.inputs};
    float *bordered = rows_with_border(shape, shape.inputs);
    float *outer = rows_with_border(shape, shape.outputs);
    for (long i = 0; i < count; i++) {
        copy_inside(shape, shape.inputs, x + i * size * shape.inputs, 0, bordered);
        pool_gradient(shape, gradient + i * pooled, winner + i * pooled, outer);
        weight_gradient(shape, bordered, outer, weight_gradients, bias_gradients);
        if (input_gradient)
            convolve(back, outer, turned, (Finish){.out = input_gradient + i * size * shape.inputs});
    }
    free(bordered), free(outer);
}

/* x + conv(relu(conv(relu(x)))); `hidden` takes the inner relu's outputs. */
void impala_residual(long count, Shape shape, const float *x, const float *first,
                     const float *first_bias, const float *second, const float *second_bias,
                     float *hidden, float *out) {
    long size = shape.height * shape.width * shape.outputs;
    float *bordered = rows_with_border(shape, shape.outputs);
    for (long i = 0; i < count; i++) {
        const float *picture = x + i * size;
        float *inner = hidden + i * size;
        copy_inside(shape, shape.outputs, picture, 1, bordered);
        convolve(shape, bordered, first, (Finish){.bias = first_bias, .relu = 1, .out = inner});
        copy_inside(shape, shape.outputs, inner, 0, bordered);
        convolve(shape, bordered, second,
                 (Finish){.bias = second_bias, .add = picture, .out = out + i * size});
    }
    free(bordered);
}

void impala_residual_backward(long count, Shape shape, const float *x, const float *hidden,
                              const float *gradient, const float *first_turned,
                              const float *second_turned, float *input_gradient, float *first,
                              float *first_bias, float *second, float *second_bias) {
    long size = shape.height * shape.width * shape.outputs;
    float *bordered = rows_with_border(shape, shape.outputs);
    float *outer = rows_with_border(shape, shape.outputs);
    float *inner = malloc(size * sizeof(float));
    for (long i = 0; i < count; i++) {
        const float *picture = x + i * size, *middle = hidden + i * size, *g = gradient + i * size;
        copy_inside(shape, shape.outputs, middle, 0, bordered);
        copy_inside(shape, shape.outputs, g, 0, outer);
        weight_gradient(shape, bordered, outer, second, second_bias);
        convolve(shape, outer, second_turned, (Finish){.where = middle, .out = inner});
        copy_inside(shape, shape.outputs, picture, 1, bordered);
        copy_inside(shape, shape.outputs, inner, 0, outer);
        weight_gradient(shape, bordered, outer, first, first_bias);
        convolve(shape, outer, first_turned,
                 (Finish){.where = picture, .add = g, .out = input_gradient + i * size});
    }
    free(bordered), free(outer), free(inner);
}
