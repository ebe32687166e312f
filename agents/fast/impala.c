/* The blocks of impala.py forward and backward, in float32 on one thread of a CPU.
 *
 * Pictures are (height, width, channels). Convolutions go in tiles (winograd.h), but for those whose
 * inputs do not fill vectors, as the three colours of frames: there the three pixels of a row under
 * the kernel lie side by side in a bordered picture, and for each row of the kernel it is one
 * product with a matrix of 3 * inputs rows. Sums are kept in registers, for ROWS pixels (or ROWS rows
 * of a weight's gradient) and LANES channels at a time.
 *
 * Weights are packed for that: (outputs / LANES, 3, 3 * inputs, LANES), or as winograd.h has them.
 */
#include "winograd.h"

typedef uint8_t Bytes __attribute__((vector_size(HALF), aligned(1), may_alias));

enum { STRIP = 4, GROUP = 16 }; /* GROUP: tiles of the pictures that are in work at once, at least */

static int in_tiles(Shape shape) { return shape.inputs % HALF == 0; }

static long group_size(Shape shape) {
    long tiles = tiles_down(shape) * tiles_across(shape);
    return tiles < GROUP ? GROUP / tiles : 1;
}

static float *bordered_group(Shape shape, long channels) {
    return zeros(group_size(shape) * bordered_pixels(shape) * channels);
}

static float *work_for(Shape shape) {
    return empty(tiles_work(shape, group_size(shape)));
}

static long packed_size(Shape shape) {
    return in_tiles(shape) ? packed_floats(shape) : 9 * shape.inputs * shape.outputs;
}

/* See impala.h for `turned`, which is for tiles alone. */
static void pack(Shape shape, const float *weights, int turned, float *to) {
    if (in_tiles(shape)) {
        tiles_pack(shape, weights, turned, to);
        return;
    }
    for (long lane = 0; lane < shape.outputs; lane += LANES)
        for (int k = 0; k < 9; k++)
            for (long i = 0; i < shape.inputs; i++)
                for (long l = 0; l < LANES; l++)
                    *to++ = weights[((lane + l) * shape.inputs + i) * 9 + k];
}

static float *packed(Shape shape, const float *weights, int turned) {
    float *to = empty(packed_size(shape));
    pack(shape, weights, turned, to);
    return to;
}

/* The gradient of the weights, from that of packed ones, which is freed. */
static void unpack(Shape shape, float *gradient, float *weights) {
    const float *from = gradient;
    if (in_tiles(shape))
        tiles_unpack(shape, gradient, weights);
    else
        for (long lane = 0; lane < shape.outputs; lane += LANES)
            for (int k = 0; k < 9; k++)
                for (long i = 0; i < shape.inputs; i++)
                    for (long l = 0; l < LANES; l++)
                        weights[((lane + l) * shape.inputs + i) * 9 + k] = *from++;
    free(gradient);
}

/* Pictures into the middle of a buffer with borders, negative values as zeros if asked. */
static void copy_inside(
    Shape shape, long count, long channels, const float *pictures, int relu, float *bordered) {
    long row = shape.width * channels, wide = bordered_row(shape) * channels;
    for (long p = 0; p < count; p++, bordered += bordered_pixels(shape) * channels)
        for (long y = 0; y < shape.height; y++, pictures += row) {
            float *to = bordered + (y + 1) * wide + channels;
            if (!relu)
                memcpy(to, pictures, row * sizeof(float));
            else
                for (long i = 0; i < row; i++) to[i] = pictures[i] < 0 ? 0 : pictures[i];
        }
}

INLINE void some_pixels(const int count, Shape shape, const float *from, const float *weight,
                        Finish to, long at, long lane) {
    const long step = shape.inputs, row = bordered_row(shape) * step, run = 3 * step;
    Sums sums[ROWS][PER_ROW] = {0};
    float done[ROWS * LANES];
    for (int line = 0; line < 3; line++, from += row, weight += run * LANES)
        multiply(count, run, step, from, weight, sums);
    store_sums(count, LANES, sums, done);
    for (int p = 0; p < count; p++)
        for (int l = 0; l < LANES; l += HALF)
            finish(to, at + p * shape.outputs + l, lane + l, load(done + p * LANES + l));
}

static void convolve_directly(
    Shape shape, const float *bordered, const float *weights, Finish to) {
    for (long lane = 0; lane < shape.outputs; lane += LANES, weights += 9 * shape.inputs * LANES)
        for (long y = 0; y < shape.height; y++) {
            const float *from = bordered + y * bordered_row(shape) * shape.inputs;
            long at = y * shape.width * shape.outputs + lane, left = shape.width;
#define TAKE(n)                                         \
    some_pixels(n, shape, from, weights, to, at, lane); \
    from += n * shape.inputs, at += n * shape.outputs, left -= n
            TAKE_ALL(left)
#undef TAKE
        }
}

INLINE void some_rows(const int count, Shape shape, const float *from, const float *gradient,
                      long lines, float *to) {
    const long in_row = bordered_row(shape) * shape.inputs;
    const long out_row = bordered_row(shape) * shape.outputs;
    Sums sums[ROWS][PER_ROW];
    load_sums(count, LANES, to, sums);
    for (long line = 0; line < lines; line++, from += in_row, gradient += out_row)
        multiply_columns(count, shape.width, shape.inputs, shape.outputs, from, gradient, sums);
    store_sums(count, LANES, sums, to);
}

static void weight_gradient_directly(
    Shape shape, const float *bordered, const float *gradient, float *weights) {
    const long in_row = bordered_row(shape) * shape.inputs;
    const long out_row = bordered_row(shape) * shape.outputs, run = 3 * shape.inputs;
    gradient += out_row + shape.outputs;
    for (long top = 0; top < shape.height; top += STRIP) {
        long lines = shape.height - top < STRIP ? shape.height - top : STRIP;
        const float *g = gradient + top * out_row;
        for (long lane = 0; lane < shape.outputs; lane += LANES)
            for (long kernel = 0; kernel < 3; kernel++) {
                const float *x = bordered + (top + kernel) * in_row;
                float *to = weights + (lane * 3 + kernel * LANES) * run;
                long left = run;
#define TAKE(n)                                   \
    some_rows(n, shape, x, g + lane, lines, to);  \
    x += n, to += n * LANES, left -= n
                TAKE_ALL(left)
#undef TAKE
            }
    }
}

/* Of `count` bordered pictures, no more than a group; `work` is for tiles. */
static void convolve(
    Shape shape, long count, const float *bordered, const float *weights, Finish to, float *work) {
    if (in_tiles(shape)) {
        tiles_convolve(shape, count, bordered, weights, to, work);
        return;
    }
    for (long p = 0; p < count; p++, bordered += bordered_pixels(shape) * shape.inputs) {
        convolve_directly(shape, bordered, weights, to);
        to.out += shape.height * shape.width * shape.outputs;
    }
}

/* Adds to the gradients of weights and bias; the outputs' gradient has a border as well. */
static void weight_gradient(Shape shape, long count, const float *bordered, const float *gradient,
                            float *weights, float *bias, float *work) {
    const long outputs = shape.outputs, row = bordered_row(shape) * outputs;
    const long size = bordered_pixels(shape);
    if (in_tiles(shape))
        tiles_weight_gradient(shape, count, bordered, gradient, 1, weights, work);
    for (long p = 0; p < count; p++, bordered += size * shape.inputs, gradient += size * outputs) {
        if (!in_tiles(shape)) weight_gradient_directly(shape, bordered, gradient, weights);
        for (long y = 1; y <= shape.height; y++)
            for (long x = 1; x <= shape.width; x++)
                for (long o = 0; o < outputs; o++) bias[o] += gradient[y * row + x * outputs + o];
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
    long channels = shape.outputs, row = bordered_row(shape) * channels;
    memset(bordered, 0, bordered_pixels(shape) * channels * sizeof(float));
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

static long smaller(long a, long b) { return a < b ? a : b; }

static long halved(long length) { return (length + 1) / 2; }

static long pooled_size(Shape shape) {
    return halved(shape.height) * halved(shape.width) * shape.outputs;
}

/* Floats that `stem` and `residual` need. */
static long scratch_size(Shape shape) {
    const long whole = shape.height * shape.width * shape.outputs, group = group_size(shape);
    return group * (bordered_pixels(shape) * shape.inputs + whole) + tiles_work(shape, group);
}

/* A convolution and its pooling; `winner` may be missing. */
static void stem(long count, Shape shape, const float *x, const float *weights, const float *bias,
                 float *out, uint8_t *winner, float *scratch) {
    const long size = shape.height * shape.width, group = group_size(shape);
    const long border = group * bordered_pixels(shape) * shape.inputs;
    float *bordered = scratch, *whole = bordered + border;
    float *work = whole + group * size * shape.outputs;
    memset(bordered, 0, border * sizeof(float));
    for (long first = 0; first < count; first += group) {
        long some = smaller(group, count - first);
        copy_inside(shape, some, shape.inputs, x + first * size * shape.inputs, 0, bordered);
        convolve(shape, some, bordered, weights, (Finish){.bias = bias, .out = whole}, work);
        for (long i = 0; i < some; i++) {
            long at = (first + i) * pooled_size(shape);
            pool(shape, whole + i * size * shape.outputs, out + at, winner ? winner + at : 0);
        }
    }
}

/* x + conv(relu(conv(relu(x)))); `hidden` takes the inner relu's outputs, and may be missing; `out`
 * may be x. */
static void residual(long count, Shape shape, const float *x, const float *first,
                     const float *first_bias, const float *second, const float *second_bias,
                     float *hidden, float *out, float *scratch) {
    const long size = shape.height * shape.width * shape.outputs, group = group_size(shape);
    const long border = group * bordered_pixels(shape) * shape.inputs;
    float *bordered = scratch, *kept = bordered + border, *work = kept + group * size;
    memset(bordered, 0, border * sizeof(float));
    for (long i = 0; i < count; i += group) {
        const long some = smaller(group, count - i), at = i * size;
        float *inner = hidden ? hidden + at : kept;
        copy_inside(shape, some, shape.outputs, x + at, 1, bordered);
        convolve(shape, some, bordered, first,
                 (Finish){.bias = first_bias, .relu = 1, .out = inner}, work);
        copy_inside(shape, some, shape.outputs, inner, 0, bordered);
        convolve(shape, some, bordered, second,
                 (Finish){.bias = second_bias, .add = x + at, .out = out + at}, work);
    }
}

void impala_stem(long count, Shape shape, const float *x, const float *weights, const float *bias,
                 float *out, uint8_t *winner) {
    float *ready = packed(shape, weights, 0), *scratch = empty(scratch_size(shape));
    stem(count, shape, x, ready, bias, out, winner, scratch);
    free(ready), free(scratch);
}

/* `input_gradient` may be missing; that of the biases is added to. */
void impala_stem_backward(long count, Shape shape, const float *x, const float *weights,
                          const uint8_t *winner, const float *gradient, float *input_gradient,
                          float *weight_gradients, float *bias_gradients) {
    const long size = shape.height * shape.width, group = group_size(shape);
    const long pooled = pooled_size(shape);
    const Shape back = {shape.height, shape.width, shape.outputs, shape.inputs, 3};
    float *bordered = bordered_group(shape, shape.inputs), *work = work_for(shape);
    float *outer = bordered_group(shape, shape.outputs), *sums = zeros(packed_size(shape));
    float *turned = input_gradient ? packed(back, weights, 1) : 0;
    for (long first = 0; first < count; first += group) {
        long some = smaller(group, count - first), at = first * size * shape.inputs;
        copy_inside(shape, some, shape.inputs, x + at, 0, bordered);
        for (long i = 0; i < some; i++)
            pool_gradient(shape, gradient + (first + i) * pooled, winner + (first + i) * pooled,
                          outer + i * bordered_pixels(shape) * shape.outputs);
        weight_gradient(shape, some, bordered, outer, sums, bias_gradients, work);
        if (input_gradient)
            convolve(back, some, outer, turned, (Finish){.out = input_gradient + at}, work);
    }
    unpack(shape, sums, weight_gradients);
    free(bordered), free(outer), free(work), free(turned);
}

void impala_residual(long count, Shape shape, const float *x, const float *first,
                     const float *first_bias, const float *second, const float *second_bias,
                     float *hidden, float *out) {
    float *one = packed(shape, first, 0), *two = packed(shape, second, 0);
    float *scratch = empty(scratch_size(shape));
    residual(count, shape, x, one, first_bias, two, second_bias, hidden, out, scratch);
    free(one), free(two), free(scratch);
}

/* Gradients of biases are added to. */
void impala_residual_backward(long count, Shape shape, const float *x, const float *hidden,
                              const float *gradient, const float *first, const float *second,
                              float *input_gradient, float *first_gradients,
                              float *first_bias_gradients, float *second_gradients,
                              float *second_bias_gradients) {
    const long size = shape.height * shape.width * shape.outputs, group = group_size(shape);
    const long channels = shape.outputs;
    float *bordered = bordered_group(shape, channels), *outer = bordered_group(shape, channels);
    float *inner = empty(group * size), *work = work_for(shape);
    float *one = packed(shape, first, 1), *one_sums = zeros(packed_size(shape));
    float *two = packed(shape, second, 1), *two_sums = zeros(packed_size(shape));
    for (long i = 0; i < count; i += group) {
        const long some = smaller(group, count - i), at = i * size;
        copy_inside(shape, some, channels, hidden + at, 0, bordered);
        copy_inside(shape, some, channels, gradient + at, 0, outer);
        weight_gradient(shape, some, bordered, outer, two_sums, second_bias_gradients, work);
        convolve(shape, some, outer, two, (Finish){.where = hidden + at, .out = inner}, work);
        copy_inside(shape, some, channels, x + at, 1, bordered);
        copy_inside(shape, some, channels, inner, 0, outer);
        weight_gradient(shape, some, bordered, outer, one_sums, first_bias_gradients, work);
        convolve(shape, some, outer, one,
                 (Finish){.where = x + at, .add = gradient + at, .out = input_gradient + at}, work);
    }
    unpack(shape, one_sums, first_gradients), unpack(shape, two_sums, second_gradients);
    free(bordered), free(outer), free(inner), free(work), free(one), free(two);
}

/* A network of blocks without gradients. Of each block the weights of its convolution and of the
 * four in its residual blocks, with their biases. */
typedef struct {
    long width;
    const float *weights[5], *biases[5];
} Block;

typedef struct {
    long height, width, channels, blocks;
    const Block *block;
} Network;

enum { SOME = 4 }; /* pictures that go through all blocks together, and stay in the cache */

/* Of a block's convolution, and of the others behind its pooling. */
static Shape whole(Network net, long b) {
    Shape shape = {net.height, net.width, net.channels, net.block[0].width, 3};
    for (long i = 1; i <= b; i++)
        shape = (Shape){halved(shape.height), halved(shape.width), shape.outputs,
                        net.block[i].width, 3};
    return shape;
}

static Shape half(Network net, long b) {
    const Shape shape = whole(net, b);
    return (Shape){halved(shape.height), halved(shape.width), shape.outputs, shape.outputs, 3};
}

static long largest(long a, long b) { return a > b ? a : b; }

/* Floats of the largest picture between two blocks. */
static long most_pooled(Network net) {
    long most = 0;
    for (long b = 0; b < net.blocks; b++) most = largest(most, pooled_size(whole(net, b)));
    return most;
}

/* Floats of a network's packed weights, of its weights themselves, and of what a thread needs. */
void impala_sizes(Network net, long *packed, long *weights, long *scratch) {
    long most = 0;
    *packed = *weights = 0;
    for (long b = 0; b < net.blocks; b++) {
        const Shape shapes[2] = {whole(net, b), half(net, b)};
        *packed += packed_size(shapes[0]) + 4 * packed_size(shapes[1]);
        for (int i = 0; i < 5; i++) *weights += 9 * shapes[i > 0].inputs * shapes[i > 0].outputs;
        most = largest(most, largest(scratch_size(shapes[0]), scratch_size(shapes[1])));
    }
    *scratch = 2 * SOME * most_pooled(net) + most;
}

/* Whether the weights are those of the copy. */
int impala_same(Network net, const float *copy) {
    for (long b = 0; b < net.blocks; b++)
        for (int i = 0; i < 5; i++) {
            const Shape shape = i ? half(net, b) : whole(net, b);
            const long size = 9 * shape.inputs * shape.outputs;
            if (memcmp(copy, net.block[b].weights[i], size * sizeof(float))) return 0;
            copy += size;
        }
    return 1;
}

/* Packs the weights, and keeps a copy of them. */
void impala_pack(Network net, float *packed, float *copy) {
    for (long b = 0; b < net.blocks; b++)
        for (int i = 0; i < 5; i++) {
            const Shape shape = i ? half(net, b) : whole(net, b);
            const long size = 9 * shape.inputs * shape.outputs;
            memcpy(copy, net.block[b].weights[i], size * sizeof(float));
            pack(shape, copy, 0, packed);
            copy += size, packed += packed_size(shape);
        }
}

void impala_blocks(
    long count, Network net, const float *packed, float *scratch, const float *x, float *out) {
    const long inputs = net.height * net.width * net.channels;
    const long outputs = pooled_size(whole(net, net.blocks - 1)), buffer = SOME * most_pooled(net);
    float *buffers[2] = {scratch, scratch + buffer}, *rest = scratch + 2 * buffer;
    for (long first = 0; first < count; first += SOME) {
        const long some = smaller(SOME, count - first);
        const float *from = x + first * inputs, *w = packed;
        for (long b = 0; b < net.blocks; b++) {
            const Shape one = whole(net, b), other = half(net, b);
            const float *const *bias = net.block[b].biases;
            const long size = packed_size(other);
            float *to = b == net.blocks - 1 ? out + first * outputs : buffers[b % 2];
            stem(some, one, from, w, bias[0], to, 0, rest);
            w += packed_size(one);
            residual(some, other, to, w, bias[1], w + size, bias[2], 0, to, rest);
            residual(some, other, to, w + 2 * size, bias[3], w + 3 * size, bias[4], 0, to, rest);
            w += 4 * size, from = to;
        }
    }
}
