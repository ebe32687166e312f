/* winograd.py's way in and out of its products: what torch has no fast word for.
 *
 * A picture is cut in tiles of t x t that overlap; every tile gives OUT x OUT values of the output.
 * Pictures are channels last, and all loops are over LANES channels at once.
 */
#define OUT 4
#define WIDEST 8 /* t at most */
#define LANES 8
#define INLINE static inline __attribute__((always_inline))

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* How the tiles lie: `rows` x `columns` of them in each of `count` pictures. `stride`: floats from
 * one of the t * t matrices to the next. */
struct tiling { long t, count, rows, columns, stride; };

struct picture { long height, width, channels; };

/* sum of row[k] * of[k], k < count */
INLINE lanes dot(long count, const float *row, const lanes *of) {
    lanes sum = row[0] * of[0];
    for (long k = 1; k < count; k++) sum += row[k] * of[k];
    return sum;
}

/* matrices[i t + j][tile][c] = (m d m^T)[i][j] of the tile d, size x size, of channel c; m: (t, size).
 * Outside of the picture, `padding` and more to every side, are zeros. */
INLINE void take_apart(long t, long size, struct tiling tiling, struct picture x, long padding,
                       const float *m, const float *pictures, float *matrices) {
    for (long n = 0; n < tiling.count; n++, pictures += x.height * x.width * x.channels)
        for (long a = 0; a < tiling.rows; a++)
            for (long b = 0; b < tiling.columns; b++, matrices += x.channels)
                for (long c = 0; c < x.channels; c += LANES) {
                    lanes half[WIDEST][WIDEST];
                    for (long j = 0; j < size; j++) {
                        const long column = b * OUT + j - padding;
                        lanes d[WIDEST];
                        for (long k = 0; k < size; k++) {
                            const long row = a * OUT + k - padding;
                            const int inside =
                                row >= 0 && row < x.height && column >= 0 && column < x.width;
                            const float *at = pictures + (row * x.width + column) * x.channels + c;
                            d[k] = inside ? *(const lanes *)at : (lanes){0};
                        }
                        for (long i = 0; i < t; i++) half[i][j] = dot(size, m + i * size, d);
                    }
                    for (long i = 0; i < t; i++)
                        for (long j = 0; j < t; j++)
                            *(lanes *)(matrices + (i * t + j) * tiling.stride + c) =
                                dot(size, m + j * size, half[i]);
                }
}

/* pictures = m p m^T + bias, p[i][j] = matrices[i t + j] of the tile; m: (OUT, t). What a tile has
 * beyond the picture is left out. */
INLINE void put_together(long t, struct tiling tiling, struct picture y, const float *m,
                         const float *bias, const float *matrices, float *pictures) {
    for (long n = 0; n < tiling.count; n++, pictures += y.height * y.width * y.channels)
        for (long a = 0; a < tiling.rows; a++)
            for (long b = 0; b < tiling.columns; b++, matrices += y.channels)
                for (long c = 0; c < y.channels; c += LANES) {
                    lanes half[OUT][WIDEST];
                    for (long j = 0; j < t; j++) {
                        lanes p[WIDEST];
                        for (long k = 0; k < t; k++)
                            p[k] = *(const lanes *)(matrices + (k * t + j) * tiling.stride + c);
                        for (long i = 0; i < OUT; i++) half[i][j] = dot(t, m + i * t, p);
                    }
                    const lanes add = *(const lanes *)(bias + c);
                    for (long i = 0; i < OUT && a * OUT + i < y.height; i++)
                        for (long j = 0; j < OUT && b * OUT + j < y.width; j++) {
                            const long pixel = (a * OUT + i) * y.width + b * OUT + j;
                            *(lanes *)(pictures + pixel * y.channels + c) =
                                dot(t, m + j * t, half[i]) + add;
                        }
                }
}

/* With t and size known to the compiler the loops become straight code. Kernels of 3 and of 5 have
 * t of 6 and of 8; inputs come in tiles of t, gradients of outputs in tiles of OUT. */
void winograd_take_apart(struct tiling tiling, long size, struct picture x, long padding,
                         const float *m, const float *pictures, float *matrices) {
    if (tiling.t == 6 && size == 6) take_apart(6, 6, tiling, x, padding, m, pictures, matrices);
    if (tiling.t == 6 && size == OUT) take_apart(6, OUT, tiling, x, padding, m, pictures, matrices);
    if (tiling.t == 8 && size == 8) take_apart(8, 8, tiling, x, padding, m, pictures, matrices);
    if (tiling.t == 8 && size == OUT) take_apart(8, OUT, tiling, x, padding, m, pictures, matrices);
}

void winograd_put_together(struct tiling tiling, struct picture y, const float *m,
                           const float *bias, const float *matrices, float *pictures) {
    if (tiling.t == 6) put_together(6, tiling, y, m, bias, matrices, pictures);
    if (tiling.t == 8) put_together(8, tiling, y, m, bias, matrices, pictures);
}
