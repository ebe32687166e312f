/* data/augmentation.py's crops, mirrored and normalised in one pass, with the same bits.
 *
 * Compiled without contraction: a product and a sum are rounded one after the other, as torch does.
 */
#include <stdint.h>
#include <string.h>

/* out[n] = the crop of pixels[n] whose corner is (top[n], left[n]) of the picture with `padding`
 * black pixels around it, mirrored left to right where mirrored[n], times scale plus shift.
 *
 * pixels: (count, height, width, channels); out: the same shape; scale, shift: (width, channels);
 * row: width * channels bytes to work with. */
void evo_crops(const uint8_t *restrict pixels, float *restrict out, const int64_t *top,
               const int64_t *left, const int64_t *mirrored, const float *restrict scale,
               const float *restrict shift, uint8_t *restrict row,
               int64_t count, int64_t height, int64_t width, int64_t channels, int64_t padding) {
    const int64_t size = width * channels;
    for (int64_t n = 0; n < count; n++, pixels += height * size) {
        const int64_t across = left[n] - padding; /* the picture's column at the crop's first */
        const int64_t first = across < 0 ? -across : 0;
        const int64_t end = across > 0 ? width - across : width;
        memset(row, 0, (size_t)size);
        for (int64_t y = 0; y < height; y++, out += size) {
            const int64_t down = y + top[n] - padding;
            if (down < 0 || down >= height) {
                memset(row, 0, (size_t)size);
            } else if (first < end) {
                const uint8_t *from = pixels + down * size + (first + across) * channels;
                if (!mirrored[n]) {
                    memcpy(row + first * channels, from, (size_t)((end - first) * channels));
                } else {
                    for (int64_t x = first; x < end; x++)
                        for (int64_t c = 0; c < channels; c++)
                            row[(width - 1 - x) * channels + c] = *from++;
                }
            }
            for (int64_t i = 0; i < size; i++) out[i] = (float)row[i] * scale[i] + shift[i];
        }
    }
}
