/* What impala.c and tiles.c share: vectors of channels, shapes, and pictures with a border. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { HALF = 8, LANES = 2 * HALF, PIXELS = 6, TILE = 4 };

typedef float Floats __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(4 * HALF), aligned(4), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(HALF), aligned(1), may_alias));

typedef struct {
    long height, width, inputs, outputs;
} Shape;

static inline Floats load(const float *from) { return *(const Floats *)from; }
static inline void store(float *to, Floats value) { *(Floats *)to = value; }
static inline Floats only(Words mask, Floats value) { return (Floats)(mask & (Words)value); }

/* A bordered picture has zeros around it: one pixel above and to the left, and below and to the
 * right as many as whole tiles need, and one. */
static inline long tiles_down(Shape shape) { return (shape.height + TILE - 1) / TILE; }
static inline long tiles_across(Shape shape) { return (shape.width + TILE - 1) / TILE; }
static inline long bordered_row(Shape shape) { return TILE * tiles_across(shape) + 2; }
static inline long bordered_pixels(Shape shape) {
    return (TILE * tiles_down(shape) + 2) * bordered_row(shape);
}

/* What happens to a convolution's sums before they are stored; all but `out` may be missing. */
typedef struct {
    const float *bias, *add; /* `add`: pictures */
    const float *where;      /* pictures: zero where they are not positive */
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

/* Sums of `count` rows, PIXELS at most, over LANES channels: kept in registers. */
#define FOR_ROWS(r, count) _Pragma("GCC unroll 6") for (int r = 0; r < count; r++)

/* Adds (count, length) times (length, LANES); the rows are `step` apart. */
static inline __attribute__((always_inline)) void multiply(
    const int count, long length, long step, const float *rows, const float *weight,
    Floats sums[PIXELS][2]) {
    for (long i = 0; i < length; i++, weight += LANES) {
        Floats first = load(weight), second = load(weight + HALF);
        FOR_ROWS(r, count) {
            float value = rows[r * step + i];
            sums[r][0] += value * first;
            sums[r][1] += value * second;
        }
    }
}

/* Adds (count, length) times (length, LANES), where both have their rows side by side: `in` floats
 * from one of the `length` columns to the next, and `out`. */
static inline __attribute__((always_inline)) void multiply_columns(
    const int count, long length, long in, long out, const float *columns, const float *gradient,
    Floats sums[PIXELS][2]) {
    for (long i = 0; i < length; i++, columns += in, gradient += out) {
        Floats first = load(gradient), second = load(gradient + HALF);
        FOR_ROWS(r, count) {
            sums[r][0] += columns[r] * first;
            sums[r][1] += columns[r] * second;
        }
    }
}

static inline __attribute__((always_inline)) void load_sums(
    const int count, long step, const float *from, Floats sums[PIXELS][2]) {
    FOR_ROWS(r, count) sums[r][0] = load(from + r * step), sums[r][1] = load(from + r * step + HALF);
}

static inline __attribute__((always_inline)) void store_sums(
    const int count, long step, Floats sums[PIXELS][2], float *to) {
    FOR_ROWS(r, count) store(to + r * step, sums[r][0]), store(to + r * step + HALF, sums[r][1]);
}

/* tiles.c: of weights (outputs, inputs, 3, 3), or with `turned` of (inputs, outputs, 3, 3) those that
 * take the outputs' gradient to the inputs'; and gradients of packed weights, unpacked. */
enum { PLACES = (TILE + 2) * (TILE + 2) };
void tiles_pack(Shape shape, const float *weights, int turned, float *packed);
void tiles_unpack(Shape shape, const float *packed, float *weights);

/* For `count` bordered pictures and packed weights; `work` has tiles_work() floats. */
long tiles_work(Shape shape, long count);
void tiles_convolve(
    Shape shape, long count, const float *bordered, const float *packed, Finish to, float *work);
void tiles_weight_gradient(Shape shape, long count, const float *bordered, const float *gradient,
                           float *packed, float *work);
