/* The convolutions of winograd.h for whole batches, as winograd.py calls them. */
#include "winograd.h"

enum { FEWEST = 64, CACHED = 1 << 19 }; /* tiles, and floats, that are in work at once */

/* Pictures that are in work at once: what a core's cache holds, but no fewer tiles than FEWEST. */
static long group_of(Shape shape, long count) {
    const long tiles = tiles_down(shape) * tiles_across(shape);
    const long fit = CACHED / (places(shape) * (shape.inputs + shape.outputs) * tiles);
    const long least = (FEWEST + tiles - 1) / tiles, most = fit > least ? fit : least;
    return most < count ? most : count;
}

/* Pictures of height x width into the middle of buffers of zeros, behind `border` rows and columns. */
static void copy_inside(Shape shape, long count, long height, long width, long channels, long border,
                        const float *pictures, float *to) {
    const long row = bordered_row(shape) * channels;
    for (long p = 0; p < count; p++, to += bordered_pixels(shape) * channels)
        for (long y = 0; y < height; y++, pictures += width * channels)
            memcpy(to + (y + border) * row + border * channels, pictures,
                   width * channels * sizeof(float));
}

/* The convolution of `count` pictures of height x width with zeros around them. `turned`: see
 * `tiles_pack`; bias: may be missing. */
int winograd_convolve(long count, Shape shape, long height, long width, long padding,
                      const float *pictures, const float *weights, int turned, const float *bias,
                      float *out) {
    const long group = group_of(shape, count), pixels = bordered_pixels(shape);
    float *packed = empty(packed_floats(shape));
    float *bordered = zeros(group * pixels * shape.inputs);
    float *work = empty(tiles_work(shape, group));
    const int there = packed && bordered && work;
    if (there) tiles_pack(shape, weights, turned, packed);
    for (long first = 0; there && first < count; first += group) {
        const long some = group < count - first ? group : count - first;
        copy_inside(shape, some, height, width, shape.inputs, padding,
                    pictures + first * height * width * shape.inputs, bordered);
        tiles_convolve(shape, some, bordered, packed,
                       (Finish){.bias = bias,
                                .out = out + first * shape.height * shape.width * shape.outputs},
                       work);
    }
    free(packed), free(bordered), free(work);
    return there;
}

/* The gradient of the weights, from that of the outputs. */
int winograd_weight_gradient(long count, Shape shape, long height, long width, long padding,
                             const float *pictures, const float *gradient, float *weights) {
    const long group = group_of(shape, count), pixels = bordered_pixels(shape);
    float *sums = zeros(packed_floats(shape));
    float *bordered = zeros(group * pixels * shape.inputs);
    float *outer = zeros(group * pixels * shape.outputs);
    float *work = empty(tiles_work(shape, group));
    const int there = sums && bordered && outer && work;
    for (long first = 0; there && first < count; first += group) {
        const long some = group < count - first ? group : count - first;
        copy_inside(shape, some, height, width, shape.inputs, padding,
                    pictures + first * height * width * shape.inputs, bordered);
        copy_inside(shape, some, shape.height, shape.width, shape.outputs, 0,
                    gradient + first * shape.height * shape.width * shape.outputs, outer);
        tiles_weight_gradient(shape, some, bordered, outer, 0, sums, work);
    }
    if (there) tiles_unpack(shape, sums, weights);
    free(sums), free(bordered), free(outer), free(work);
    return there;
}
