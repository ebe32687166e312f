/* Convolutions of 3x3 and 5x5 in tiles: Winograd's minimal filtering F(4x4, 3x3) and F(4x4, 5x5) (Lavin
 * and Gray 2016, arXiv 1509.09308, sections 4.1 and 4.3), a quarter and a sixth of the products.
 *
 * A tile of 4x4 results is taken from t x t inputs, t = 4 + kernel - 1. These are transformed along both
 * axes (matrix B^T there), multiplied by transformed weights (G) as t * t matrix products over the
 * channels, one for each place in a tile, and transformed back (A^T). Gradients of weights go the way
 * of the transposed matrices. Packed weights are transformed, (t * t, outputs / LANES, inputs, LANES).
 *
 * Pictures are (height, width, channels). Channels are multiples of HALF; results have `wide` channels
 * while they are in work. winograd.c makes a library of this for Python, agents/fast/impala.c another.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HALF = 8, LANES = 2 * HALF, TILE = 4 };

typedef float Floats __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(4 * HALF), aligned(4), may_alias));

/* A convolution: height and width of its results, channels, and rows of its kernel, 3 or 5. */
typedef struct {
    long height, width, inputs, outputs, kernel;
} Shape;

#define INLINE static inline __attribute__((always_inline))

INLINE Floats load(const float *from) { return *(const Floats *)from; }
INLINE void store(float *to, Floats value) { *(Floats *)to = value; }
INLINE Floats only(Words mask, Floats value) { return (Floats)(mask & (Words)value); }

/* A bordered picture has zeros around it: above and to the left as many as the convolution has, below
 * and to the right as many as whole tiles need. */
static inline long tiles_down(Shape shape) { return (shape.height + TILE - 1) / TILE; }
static inline long tiles_across(Shape shape) { return (shape.width + TILE - 1) / TILE; }
static inline long bordered_row(Shape shape) { return TILE * tiles_across(shape) + shape.kernel - 1; }
static inline long bordered_pixels(Shape shape) {
    return (TILE * tiles_down(shape) + shape.kernel - 1) * bordered_row(shape);
}

/* Memory for so many floats that begins with a line of the cache, so that no vector lies on two. */
static float *empty(long floats) { return aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64); }

static float *zeros(long floats) {
    float *made = empty(floats);
    return made ? memset(made, 0, floats * sizeof(float)) : 0;
}

/* What happens to a convolution's sums before they are stored; all but `out` may be missing. */
typedef struct {
    const float *bias, *add; /* `add`: pictures */
    const float *where;      /* pictures: zero where they are not positive */
    int relu;
    float *out;
} Finish;

INLINE void finish(Finish to, long at, long lane, Floats sum) {
    if (to.bias) sum += load(to.bias + lane);
    if (to.relu) sum = only(~(sum < 0), sum);
    if (to.where) sum = only(~(load(to.where + at) <= 0), sum);
    if (to.add) sum += load(to.add + at);
    store(to.out + at, sum);
}

/* Sums of `count` rows, ROWS at most, over LANES channels: kept in registers, as many as a processor
 * has. */
#ifdef __AVX512F__
enum { ROWS = 12, PER_ROW = 1 };
typedef float Sums __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#else
enum { ROWS = 6, PER_ROW = 2 };
typedef Floats Sums;
#endif
enum { SUMS = LANES / PER_ROW, FAR = 256 }; /* FAR: rows whose weights come from beyond the cache */
#define FOR_SUMS(r, v, count)                          \
    _Pragma("GCC unroll 12") for (int r = 0; r < count; r++) \
        _Pragma("GCC unroll 2") for (int v = 0; v < PER_ROW; v++)

/* Does TAKE(n) for `left` rows in all, n of them at a time. */
#define TAKE_ALL(left)                                                       \
    if (ROWS == 12) {                                                        \
        while (left >= 12 && left != 16) { TAKE(12); }                       \
        while (left >= 8) { TAKE(8); }                                       \
    }                                                                        \
    while (ROWS == 6 && left >= 6 && left != 8) { TAKE(6); }                 \
    while (left >= 4) { TAKE(4); }                                           \
    while (left > 0) { TAKE(1); }

/* Adds (count, length) times (length, LANES); the rows are `step` apart. */
INLINE void multiply(const int count, long length, long step, const float *rows, const float *weight,
                     Sums sums[ROWS][PER_ROW]) {
    for (long i = 0; i < length; i++, weight += LANES) {
        Sums factors[PER_ROW];
        for (int v = 0; v < PER_ROW; v++) factors[v] = *(const Sums *)(weight + v * SUMS);
        if (length >= FAR) __builtin_prefetch(weight + length * LANES); /* of the next lanes */
        FOR_SUMS(r, v, count) sums[r][v] += rows[r * step + i] * factors[v];
    }
}

/* Adds (count, length) times (length, LANES), where both have their rows side by side: `in` floats
 * from one of the `length` columns to the next, and `out`. */
INLINE void multiply_columns(const int count, long length, long in, long out, const float *columns,
                             const float *gradient, Sums sums[ROWS][PER_ROW]) {
    for (long i = 0; i < length; i++, columns += in, gradient += out) {
        Sums factors[PER_ROW];
        for (int v = 0; v < PER_ROW; v++) factors[v] = *(const Sums *)(gradient + v * SUMS);
        FOR_SUMS(r, v, count) sums[r][v] += columns[r] * factors[v];
    }
}

INLINE void load_sums(const int count, long step, const float *from, Sums sums[ROWS][PER_ROW]) {
    FOR_SUMS(r, v, count) sums[r][v] = *(const Sums *)(from + r * step + v * SUMS);
}

INLINE void store_sums(const int count, long step, Sums sums[ROWS][PER_ROW], float *to) {
    FOR_SUMS(r, v, count) *(Sums *)(to + r * step + v * SUMS) = sums[r][v];
}

/* G: of three weights along an axis, at the points 0, 1, -1, 2, -2 and infinity. */
static const float OF_THREE[6][3] = {
    {1.0f / 4, 0, 0},
    {-1.0f / 6, -1.0f / 6, -1.0f / 6},
    {-1.0f / 6, 1.0f / 6, -1.0f / 6},
    {1.0f / 24, 1.0f / 12, 1.0f / 6},
    {1.0f / 24, -1.0f / 12, 1.0f / 6},
    {0, 0, 1},
};

/* G: of five, at 0, 1, -1, 2, -2, 1/2, -1/2 and infinity. */
static const float OF_FIVE[8][5] = {
    {1, 0, 0, 0, 0},
    {-2.0f / 9, -2.0f / 9, -2.0f / 9, -2.0f / 9, -2.0f / 9},
    {-2.0f / 9, 2.0f / 9, -2.0f / 9, 2.0f / 9, -2.0f / 9},
    {1.0f / 90, 2.0f / 90, 4.0f / 90, 8.0f / 90, 16.0f / 90},
    {1.0f / 90, -2.0f / 90, 4.0f / 90, -8.0f / 90, 16.0f / 90},
    {32.0f / 45, 16.0f / 45, 8.0f / 45, 4.0f / 45, 2.0f / 45},
    {32.0f / 45, -16.0f / 45, 8.0f / 45, -4.0f / 45, 2.0f / 45},
    {0, 0, 0, 0, 1},
};

enum { WIDEST = 8, GAP = LANES }; /* WIDEST: t at most; GAP: see `apart` */

static long span(Shape shape) { return shape.kernel + TILE - 1; }
static long places(Shape shape) { return span(shape) * span(shape); }
static long wide(long channels) { return (channels + LANES - 1) / LANES * LANES; }
static long packed_floats(Shape shape) { return places(shape) * shape.inputs * wide(shape.outputs); }

INLINE float weight_of(const int r, long place, long k) {
    return r == 3 ? OF_THREE[place][k] : OF_FIVE[place][k];
}

/* Where the weights of an output and an input lie. */
static long kernel_at(Shape shape, int turned, long output, long input) {
    return shape.kernel * shape.kernel *
           (turned ? input * shape.outputs + output : output * shape.inputs + input);
}

INLINE void pack_by(const int r, Shape shape, const float *weights, int turned, float *packed) {
    const int t = r + TILE - 1;
    const long place = shape.inputs * wide(shape.outputs);
    for (long lane = 0; lane < shape.outputs; lane += LANES)
        for (long i = 0; i < shape.inputs; i++, packed += LANES) {
            float kernel[25][LANES] = {0}, lines[WIDEST][5][LANES] = {0};
            for (int l = 0; l < LANES && lane + l < shape.outputs; l++) {
                const float *from = weights + kernel_at(shape, turned, lane + l, i);
                for (int k = 0; k < r * r; k++) kernel[k][l] = from[turned ? r * r - 1 - k : k];
            }
            for (int a = 0; a < t; a++)
                for (int x = 0; x < r; x++)
                    for (int y = 0; y < r; y++)
                        for (int l = 0; l < LANES; l++)
                            lines[a][x][l] += weight_of(r, a, y) * kernel[y * r + x][l];
            for (int a = 0; a < t; a++)
                for (int b = 0; b < t; b++) {
                    float sums[LANES] = {0};
                    for (int x = 0; x < r; x++)
                        for (int l = 0; l < LANES; l++)
                            sums[l] += weight_of(r, b, x) * lines[a][x][l];
                    memcpy(packed + (a * t + b) * place, sums, sizeof sums);
                }
        }
}

INLINE void unpack_by(const int r, Shape shape, const float *packed, float *weights) {
    const int t = r + TILE - 1;
    const long place = shape.inputs * wide(shape.outputs);
    for (long lane = 0; lane < shape.outputs; lane += LANES)
        for (long i = 0; i < shape.inputs; i++, packed += LANES) {
            float lines[WIDEST][5][LANES] = {0}, kernel[25][LANES] = {0};
            for (int a = 0; a < t; a++)
                for (int b = 0; b < t; b++)
                    for (int x = 0; x < r; x++)
                        for (int l = 0; l < LANES; l++)
                            lines[a][x][l] += weight_of(r, b, x) * packed[(a * t + b) * place + l];
            for (int a = 0; a < t; a++)
                for (int y = 0; y < r; y++)
                    for (int x = 0; x < r; x++)
                        for (int l = 0; l < LANES; l++)
                            kernel[y * r + x][l] += weight_of(r, a, y) * lines[a][x][l];
            for (int l = 0; l < LANES && lane + l < shape.outputs; l++)
                for (int k = 0; k < r * r; k++)
                    weights[kernel_at(shape, 0, lane + l, i) + k] = kernel[k][l];
        }
}

/* Of weights (outputs, inputs, kernel, kernel), or with `turned` of (inputs, outputs, kernel, kernel)
 * those that take the outputs' gradient to the inputs'. */
static void tiles_pack(Shape shape, const float *weights, int turned, float *packed) {
    if (shape.kernel == 3) pack_by(3, shape, weights, turned, packed);
    else pack_by(5, shape, weights, turned, packed);
}

/* The gradient of the weights from that of packed ones. */
static void tiles_unpack(Shape shape, const float *packed, float *weights) {
    if (shape.kernel == 3) unpack_by(3, shape, packed, weights);
    else unpack_by(5, shape, packed, weights);
}

/* Floats between the matrices of two places: not a power of two, lest all values of a tile fall on
 * one line of the cache. */
static long apart(long tiles, long channels) { return tiles * channels + GAP; }

static long all_tiles(Shape shape, long count) {
    return count * tiles_down(shape) * tiles_across(shape);
}

/* Floats that `count` pictures need in work. */
static long tiles_work(Shape shape, long count) {
    long tiles = all_tiles(shape, count);
    return places(shape) * (apart(tiles, shape.inputs) + apart(tiles, wide(shape.outputs)));
}

/* B^T of `t` values that are `step` apart. */
INLINE void input_line(const int t, const Floats *d, long step, Floats *to, long out) {
    Floats d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    if (t == 6) {
        Floats even = d4 - 4.0f * d2, odd = d3 - 4.0f * d1;
        Floats half = d4 - d2, twice = 2.0f * (d3 - d1);
        to[0] = 4.0f * d[0] - 5.0f * d2 + d4;
        to[out] = even + odd;
        to[2 * out] = even - odd;
        to[3 * out] = half + twice;
        to[4 * out] = half - twice;
        to[5 * out] = 4.0f * d1 - 5.0f * d3 + d5;
        return;
    }
    Floats d6 = d[6 * step];
    Floats even = d2 - 4.25f * d4 + d6, odd = d1 - 4.25f * d3 + d5;
    to[0] = d[0] - d6 + 5.25f * (d4 - d2);
    to[out] = even + odd;
    to[2 * out] = even - odd;
    even = 0.25f * d2 - 1.25f * d4 + d6, odd = 0.5f * d1 - 2.5f * d3 + 2.0f * d5;
    to[3 * out] = even + odd;
    to[4 * out] = even - odd;
    even = 4.0f * d2 - 5.0f * d4 + d6, odd = 2.0f * d1 - 2.5f * d3 + 0.5f * d5;
    to[5 * out] = even + odd;
    to[6 * out] = even - odd;
    to[7 * out] = d[7 * step] - d1 + 5.25f * (d3 - d5);
}

/* A of four values. */
INLINE void gradient_line(const int t, const Floats *g, long step, Floats *to, long out) {
    Floats g0 = g[0], g1 = g[step], g2 = g[2 * step], g3 = g[3 * step];
    Floats even = g0 + g2, odd = g1 + g3, far = g0 + 4.0f * g2, steep = 2.0f * g1 + 8.0f * g3;
    to[0] = g0;
    to[out] = even + odd;
    to[2 * out] = even - odd;
    to[3 * out] = far + steep;
    to[4 * out] = far - steep;
    if (t == 8) {
        Floats near = g0 + 0.25f * g2, flat = 0.5f * g1 + 0.125f * g3;
        to[5 * out] = near + flat;
        to[6 * out] = near - flat;
    }
    to[(t - 1) * out] = g3;
}

/* A^T of `t` values. */
INLINE void output_line(const int t, const Floats *m, long step, Floats *to, long out) {
    Floats m1 = m[step], m2 = m[2 * step], m3 = m[3 * step], m4 = m[4 * step];
    Floats near = m1 + m2, far = m3 + m4, slope = m1 - m2, steep = m3 - m4;
    to[0] = m[0] + near + far;
    to[out] = slope + 2.0f * steep;
    to[2 * out] = near + 4.0f * far;
    to[3 * out] = slope + 8.0f * steep + m[(t - 1) * step];
    if (t == 8) {
        Floats m5 = m[5 * step], m6 = m[6 * step], last = m5 + m6, flat = m5 - m6;
        to[0] += last;
        to[out] += 0.5f * flat;
        to[2 * out] += 0.25f * last;
        to[3 * out] += 0.125f * flat;
    }
}

/* The matrices (t * t, tiles, wide channels) of all tiles: of inputs, or of gradients, whose pictures
 * begin at row and column `first` of their buffers. */
INLINE void take_apart(const int t, Shape shape, const int gradients, long first, long count,
                       long channels, const float *bordered, float *to) {
    const long row = bordered_row(shape) * channels, padded = gradients ? wide(channels) : channels;
    const long place = apart(all_tiles(shape, count), padded);
    const int size = gradients ? TILE : t;
    Floats tile[WIDEST * WIDEST], lines[WIDEST * WIDEST];
    for (long p = 0; p < count; p++, bordered += bordered_pixels(shape) * channels)
        for (long y = 0; y < TILE * tiles_down(shape); y += TILE)
            for (long x = 0; x < TILE * tiles_across(shape); x += TILE) {
                const float *corner = bordered + (y + first) * row + (x + first) * channels;
                for (long c = 0; c < channels; c += HALF, to += HALF) {
                    for (int i = 0; i < size; i++)
                        for (int j = 0; j < size; j++)
                            tile[i * t + j] = load(corner + c + i * row + j * channels);
                    for (int j = 0; j < size; j++)
                        if (gradients) gradient_line(t, tile + j, t, lines + j, t);
                        else input_line(t, tile + j, t, lines + j, t);
                    for (int i = 0; i < t; i++) {
                        Floats done[WIDEST];
                        if (gradients) gradient_line(t, lines + i * t, 1, done, 1);
                        else input_line(t, lines + i * t, 1, done, 1);
                        for (int j = 0; j < t; j++) store(to + (i * t + j) * place, done[j]);
                    }
                }
                for (long c = channels; c < padded; c += HALF, to += HALF)
                    for (int i = 0; i < t * t; i++) store(to + i * place, (Floats){0});
            }
}

/* Outputs of (t * t, tiles, wide channels); what a tile has beyond its picture is dropped. */
INLINE void put_together(const int t, Shape shape, long count, const float *from, Finish to) {
    const long channels = shape.outputs, padded = wide(channels);
    const long place = apart(all_tiles(shape, count), padded);
    for (long p = 0; p < count; p++)
        for (long y = 0; y < shape.height; y += TILE)
            for (long x = 0; x < shape.width; x += TILE, from += padded - channels)
                for (long c = 0; c < channels; c += HALF, from += HALF) {
                    Floats lines[TILE * WIDEST], done[TILE * TILE];
                    for (int j = 0; j < t; j++) {
                        Floats column[WIDEST];
                        for (int i = 0; i < t; i++) column[i] = load(from + (i * t + j) * place);
                        output_line(t, column, 1, lines + j, t);
                    }
                    for (int i = 0; i < TILE; i++)
                        output_line(t, lines + i * t, 1, done + i * TILE, 1);
                    for (int i = 0; i < TILE && y + i < shape.height; i++)
                        for (int j = 0; j < TILE && x + j < shape.width; j++) {
                            long pixel = (p * shape.height + y + i) * shape.width + x + j;
                            finish(to, pixel * channels + c, c, done[i * TILE + j]);
                        }
                }
}

INLINE void some_tiles(const int count, long inputs, long outputs, const float *from,
                       const float *weight, float *to) {
    Sums sums[ROWS][PER_ROW] = {0};
    multiply(count, inputs, inputs, from, weight, sums);
    store_sums(count, outputs, sums, to);
}

/* (tiles, inputs) times (inputs, outputs), for one place. */
static void product(
    long tiles, long inputs, long outputs, const float *from, const float *weights, float *to) {
    for (long lane = 0; lane < outputs; lane += LANES, weights += inputs * LANES) {
        const float *some = from;
        float *out = to + lane;
        long left = tiles;
#define TAKE(n)                                           \
    some_tiles(n, inputs, outputs, some, weights, out);   \
    some += n * inputs, out += n * outputs, left -= n
        TAKE_ALL(left)
#undef TAKE
    }
}

INLINE void some_inputs(const int count, long tiles, long inputs, long outputs, const float *from,
                        const float *gradient, float *to) {
    Sums sums[ROWS][PER_ROW];
    load_sums(count, LANES, to, sums);
    multiply_columns(count, tiles, inputs, outputs, from, gradient, sums);
    store_sums(count, LANES, sums, to);
}

/* Adds (inputs, tiles) times (tiles, outputs), for one place. */
static void add_product(long tiles, long inputs, long outputs, const float *from,
                        const float *gradient, float *to) {
    for (long lane = 0; lane < outputs; lane += LANES) {
        const float *some = from;
        long left = inputs;
#define TAKE(n)                                                            \
    some_inputs(n, tiles, inputs, outputs, some, gradient + lane, to);     \
    some += n, to += n * LANES, left -= n
        TAKE_ALL(left)
#undef TAKE
    }
}

INLINE void convolve_by(const int t, Shape shape, long count, const float *bordered,
                        const float *packed, Finish to, float *work) {
    const long tiles = all_tiles(shape, count), inputs = shape.inputs;
    const long outputs = wide(shape.outputs);
    float *made = work + t * t * apart(tiles, inputs);
    take_apart(t, shape, 0, 0, count, inputs, bordered, work);
    for (long place = 0; place < t * t; place++)
        product(tiles, inputs, outputs, work + place * apart(tiles, inputs),
                packed + place * inputs * outputs, made + place * apart(tiles, outputs));
    put_together(t, shape, count, made, to);
}

INLINE void weight_gradient_by(const int t, Shape shape, long count, const float *bordered,
                               const float *gradient, long first, float *packed, float *work) {
    const long tiles = all_tiles(shape, count), inputs = shape.inputs;
    const long outputs = wide(shape.outputs);
    float *spread = work + t * t * apart(tiles, inputs);
    take_apart(t, shape, 0, 0, count, inputs, bordered, work);
    take_apart(t, shape, 1, first, count, shape.outputs, gradient, spread);
    for (long place = 0; place < t * t; place++)
        add_product(tiles, inputs, outputs, work + place * apart(tiles, inputs),
                    spread + place * apart(tiles, outputs), packed + place * inputs * outputs);
}

/* Of `count` bordered pictures and packed weights; `work` has tiles_work() floats. */
static void tiles_convolve(
    Shape shape, long count, const float *bordered, const float *packed, Finish to, float *work) {
    if (shape.kernel == 3) convolve_by(6, shape, count, bordered, packed, to, work);
    else convolve_by(8, shape, count, bordered, packed, to, work);
}

/* Adds to the gradient of packed weights. Gradients lie in buffers of the same size, their first pixels
 * at row and column `first`, zeros below and to the right. */
static void tiles_weight_gradient(Shape shape, long count, const float *bordered,
                                  const float *gradient, long first, float *packed, float *work) {
    if (shape.kernel == 3)
        weight_gradient_by(6, shape, count, bordered, gradient, first, packed, work);
    else
        weight_gradient_by(8, shape, count, bordered, gradient, first, packed, work);
}
