/* 3x3 convolutions with a border of one, in tiles: Winograd's minimal filtering F(4x4, 3x3) (Lavin
 * and Gray 2016, arXiv 1509.09308, sections 4.1 and 4.3), a quarter of the products.
 *
 * A tile of 4x4 outputs is taken from 6x6 inputs. These are transformed along both axes (matrix
 * B^T there), multiplied by transformed weights (G) as 36 matrix products over the channels, one
 * for each place in a tile, and transformed back (A^T). Gradients of weights go the way of the
 * transposed matrices. Packed weights are transformed, (36, outputs / LANES, inputs, LANES); inputs
 * and outputs are multiples of HALF and of LANES.
 */
#include "impala.h"

enum { SPAN = TILE + 2, GAP = LANES }; /* GAP: see `apart` */

/* G: of three weights along an axis. */
static const float WEIGHTS[SPAN][3] = {
    {1.0f / 4, 0, 0},
    {-1.0f / 6, -1.0f / 6, -1.0f / 6},
    {-1.0f / 6, 1.0f / 6, -1.0f / 6},
    {1.0f / 24, 1.0f / 12, 1.0f / 6},
    {1.0f / 24, -1.0f / 12, 1.0f / 6},
    {0, 0, 1},
};

/* Where the nine weights of an output and an input lie. */
static long kernel_at(Shape shape, int turned, long output, long input) {
    return 9 * (turned ? input * shape.outputs + output : output * shape.inputs + input);
}

void tiles_pack(Shape shape, const float *weights, int turned, float *packed) {
    const long place = shape.inputs * shape.outputs;
    for (long lane = 0; lane < shape.outputs; lane += LANES)
        for (long i = 0; i < shape.inputs; i++, packed += LANES) {
            float kernel[9][LANES], lines[SPAN][3][LANES];
            for (int l = 0; l < LANES; l++) {
                const float *from = weights + kernel_at(shape, turned, lane + l, i);
                for (int k = 0; k < 9; k++) kernel[k][l] = from[turned ? 8 - k : k];
            }
            for (int a = 0; a < SPAN; a++)
                for (int x = 0; x < 3; x++)
                    for (int l = 0; l < LANES; l++)
                        lines[a][x][l] = WEIGHTS[a][0] * kernel[x][l] +
                                         WEIGHTS[a][1] * kernel[3 + x][l] +
                                         WEIGHTS[a][2] * kernel[6 + x][l];
            for (int a = 0; a < SPAN; a++)
                for (int b = 0; b < SPAN; b++)
                    for (int l = 0; l < LANES; l++)
                        packed[(a * SPAN + b) * place + l] = WEIGHTS[b][0] * lines[a][0][l] +
                                                             WEIGHTS[b][1] * lines[a][1][l] +
                                                             WEIGHTS[b][2] * lines[a][2][l];
        }
}

void tiles_unpack(Shape shape, const float *packed, float *weights) {
    const long place = shape.inputs * shape.outputs;
    for (long lane = 0; lane < shape.outputs; lane += LANES)
        for (long i = 0; i < shape.inputs; i++, packed += LANES) {
            float lines[SPAN][3][LANES] = {0}, kernel[9][LANES] = {0};
            for (int a = 0; a < SPAN; a++)
                for (int b = 0; b < SPAN; b++)
                    for (int x = 0; x < 3; x++)
                        for (int l = 0; l < LANES; l++)
                            lines[a][x][l] += WEIGHTS[b][x] * packed[(a * SPAN + b) * place + l];
            for (int a = 0; a < SPAN; a++)
                for (int y = 0; y < 3; y++)
                    for (int x = 0; x < 3; x++)
                        for (int l = 0; l < LANES; l++)
                            kernel[3 * y + x][l] += WEIGHTS[a][y] * lines[a][x][l];
            for (int l = 0; l < LANES; l++)
                for (int k = 0; k < 9; k++)
                    weights[kernel_at(shape, 0, lane + l, i) + k] = kernel[k][l];
        }
}

/* Floats between the matrices of two places: not a power of two, lest all 36 values of a tile fall
 * on one line of the cache. */
static long apart(long tiles, long channels) { return tiles * channels + GAP; }

static long all_tiles(Shape shape, long count) {
    return count * tiles_down(shape) * tiles_across(shape);
}

long tiles_work(Shape shape, long count) {
    long tiles = all_tiles(shape, count);
    return PLACES * (apart(tiles, shape.inputs) + apart(tiles, shape.outputs));
}

/* B^T of six values that are `step` apart. */
static inline __attribute__((always_inline)) void input_line(
    const Floats *d, long step, Floats *to, long out) {
    Floats d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step];
    Floats even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
    Floats half = d4 - d2, twice = 2.0f * (d3 - d1);
    to[0] = 4.0f * d[0] - 5.0f * d2 + d4;
    to[out] = even + odd;
    to[2 * out] = even - odd;
    to[3 * out] = half + twice;
    to[4 * out] = half - twice;
    to[5 * out] = 4.0f * d1 - 5.0f * d3 + d[5 * step];
}

/* A of four values. */
static inline __attribute__((always_inline)) void gradient_line(
    const Floats *g, long step, Floats *to, long out) {
    Floats g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    Floats even = g0 + g2, odd = g1 + g3, wide = g0 + 4.0f * g2, steep = 2.0f * g1 + 8.0f * g3;
    to[0] = g0;
    to[out] = even + odd;
    to[2 * out] = even - odd;
    to[3 * out] = wide + steep;
    to[4 * out] = wide - steep;
    to[5 * out] = g3;
}

/* A^T of six values. */
static inline __attribute__((always_inline)) void output_line(
    const Floats *m, long step, Floats *to, long out) {
    Floats m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
    Floats near = m1 + m2, far = m3 + m4, slope = m1 - m2, steep = m3 - m4;
    to[0] = m[0] + near + far;
    to[out] = slope + 2.0f * steep;
    to[2 * out] = near + 4.0f * far;
    to[3 * out] = slope + 8.0f * steep + m[5 * step];
}

/* The matrices (36, tiles, channels) of all tiles: of 6x6 inputs, or of 4x4 gradients within them. */
static inline __attribute__((always_inline)) void take_apart(
    Shape shape, const int gradients, long count, long channels, const float *bordered, float *to) {
    const long row = bordered_row(shape) * channels, place = apart(all_tiles(shape, count), channels);
    const int size = gradients ? TILE : SPAN, first = gradients;
    Floats tile[PLACES], lines[PLACES];
    for (long p = 0; p < count; p++, bordered += bordered_pixels(shape) * channels)
        for (long y = 0; y < TILE * tiles_down(shape); y += TILE)
            for (long x = 0; x < TILE * tiles_across(shape); x += TILE)
                for (long c = 0; c < channels; c += HALF, to += HALF) {
                    const float *from = bordered + (y + first) * row + (x + first) * channels + c;
                    for (int i = 0; i < size; i++)
                        for (int j = 0; j < size; j++)
                            tile[i * SPAN + j] = load(from + i * row + j * channels);
                    for (int j = 0; j < size; j++)
                        if (gradients) gradient_line(tile + j, SPAN, lines + j, SPAN);
                        else input_line(tile + j, SPAN, lines + j, SPAN);
                    for (int i = 0; i < SPAN; i++) {
                        Floats done[SPAN];
                        if (gradients) gradient_line(lines + i * SPAN, 1, done, 1);
                        else input_line(lines + i * SPAN, 1, done, 1);
                        for (int j = 0; j < SPAN; j++) store(to + (i * SPAN + j) * place, done[j]);
                    }
                }
}

/* Outputs of (36, tiles, channels); what a tile has beyond its picture is dropped. */
static void put_together(Shape shape, long count, const float *from, Finish to) {
    const long channels = shape.outputs, place = apart(all_tiles(shape, count), channels);
    for (long p = 0; p < count; p++)
        for (long y = 0; y < shape.height; y += TILE)
            for (long x = 0; x < shape.width; x += TILE)
                for (long c = 0; c < channels; c += HALF, from += HALF) {
                    Floats lines[PLACES], done[TILE * TILE];
                    for (int j = 0; j < SPAN; j++) {
                        Floats column[SPAN];
                        for (int i = 0; i < SPAN; i++)
                            column[i] = load(from + (i * SPAN + j) * place);
                        output_line(column, 1, lines + j, SPAN);
                    }
                    for (int i = 0; i < TILE; i++)
                        output_line(lines + i * SPAN, 1, done + i * TILE, 1);
                    for (int i = 0; i < TILE && y + i < shape.height; i++)
                        for (int j = 0; j < TILE && x + j < shape.width; j++) {
                            long pixel = (p * shape.height + y + i) * shape.width + x + j;
                            finish(to, pixel * channels + c, c, done[i * TILE + j]);
                        }
                }
}

static inline __attribute__((always_inline)) void some_tiles(
    const int count, long inputs, long outputs, const float *from, const float *weight, float *to) {
    Floats sums[PIXELS][2] = {0};
    multiply(count, inputs, inputs, from, weight, sums);
    store_sums(count, outputs, sums, to);
}

/* (tiles, inputs) times (inputs, outputs), for one place. */
static void product(
    long tiles, long inputs, long outputs, const float *from, const float *weights, float *to) {
    for (long lane = 0; lane < outputs; lane += LANES, weights += inputs * LANES) {
        long t = 0;
#define TAKE(n) some_tiles(n, inputs, outputs, from + t * inputs, weights, to + t * outputs + lane)
        for (; tiles - t >= 6 && tiles - t != 8; t += 6) TAKE(6);
        for (; tiles - t >= 4; t += 4) TAKE(4);
        for (; t < tiles; t++) TAKE(1);
#undef TAKE
    }
}

static inline __attribute__((always_inline)) void some_inputs(
    const int count, long tiles, long inputs, long outputs, const float *from,
    const float *gradient, float *to) {
    Floats sums[PIXELS][2];
    load_sums(count, LANES, to, sums);
    multiply_columns(count, tiles, inputs, outputs, from, gradient, sums);
    store_sums(count, LANES, sums, to);
}

/* Adds (inputs, tiles) times (tiles, outputs), for one place. */
static void add_product(long tiles, long inputs, long outputs, const float *from,
                        const float *gradient, float *to) {
    for (long lane = 0; lane < outputs; lane += LANES, to += inputs * LANES) {
        long i = 0;
#define TAKE(n) some_inputs(n, tiles, inputs, outputs, from + i, gradient + lane, to + i * LANES)
        for (; inputs - i >= 6 && inputs - i != 8; i += 6) TAKE(6);
        for (; inputs - i >= 4; i += 4) TAKE(4);
#undef TAKE
    }
}

void tiles_convolve(
    Shape shape, long count, const float *bordered, const float *packed, Finish to, float *work) {
    const long tiles = all_tiles(shape, count), inputs = shape.inputs, outputs = shape.outputs;
    float *made = work + PLACES * apart(tiles, inputs);
    take_apart(shape, 0, count, inputs, bordered, work);
    for (long place = 0; place < PLACES; place++)
        product(tiles, inputs, outputs, work + place * apart(tiles, inputs),
                packed + place * inputs * outputs, made + place * apart(tiles, outputs));
    put_together(shape, count, made, to);
}

void tiles_weight_gradient(Shape shape, long count, const float *bordered, const float *gradient,
                           float *packed, float *work) {
    const long tiles = all_tiles(shape, count), inputs = shape.inputs, outputs = shape.outputs;
    float *spread = work + PLACES * apart(tiles, inputs);
    take_apart(shape, 0, count, inputs, bordered, work);
    take_apart(shape, 1, count, outputs, gradient, spread);
    for (long place = 0; place < PLACES; place++)
        add_product(tiles, inputs, outputs, work + place * apart(tiles, inputs),
                    spread + place * apart(tiles, outputs), packed + place * inputs * outputs);
}
