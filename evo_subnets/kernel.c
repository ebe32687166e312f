/* The draws of streams.py and the children of mutation.py, fused into one pass over the weights.
 *
 * streams.py is the definition; this file must give the same bits. It therefore uses only integer
 * arithmetic and the IEEE operations + - * / sqrt, each rounded once, in the same order as there,
 * and is compiled without contraction (no fused multiply-add) or any other unsafe transformation.
 * The loops over LANES have no dependencies, so that compilers turn them into vector code.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, TILE = 4 * LANES };

typedef struct {
    uint32_t low, width; /* the subnetwork's interval of u, in units of 2^-24 */
    float sigma;
    uint32_t unused;
} Recipe;

typedef struct {
    uint64_t seed, name; /* name: hash of the parameter's name */
    uint32_t stream;
} Key;

/* Philox 4x32-10 (Salmon et al. 2011) of the counters (block + lane, stream, name).
 *
 * A 32-bit word sits in a 64-bit lane whose upper half is ignored: vector units multiply just so,
 * and nothing has to be moved between lanes until the end. Two vectors at a time hide latency. */
typedef uint64_t Words __attribute__((vector_size(32)));

#ifdef __AVX2__
#include <immintrin.h>
static inline Words multiply(Words a, Words b) {
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
#else
static inline Words multiply(Words a, Words b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
#endif

static inline void philox(Key key, uint64_t block, uint32_t out[4][LANES]) {
    const Words zero = {0}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;
    uint64_t words[4][LANES];
    for (int j = 0; j < LANES; j += 8) {
        Words k0 = zero + (uint32_t)key.seed, k1 = zero + (key.seed >> 32);
        Words c0 = (Words){0, 1, 2, 3} + (block + (uint64_t)j), d0 = c0 + 4;
        Words c1 = zero + key.stream, d1 = c1;
        Words c2 = zero + key.name, d2 = c2;
        Words c3 = zero + (key.name >> 32), d3 = c3;
        for (int round = 0; round < 10; round++) {
            Words a = multiply(m0, c0), b = multiply(m1, c2);
            Words e = multiply(m0, d0), f = multiply(m1, d2);
            c0 = (b >> 32) ^ (c1 ^ k0);
            d0 = (f >> 32) ^ (d1 ^ k0);
            c2 = (a >> 32) ^ (c3 ^ k1);
            d2 = (e >> 32) ^ (d3 ^ k1);
            c1 = b, d1 = f, c3 = a, d3 = e;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        memcpy(&words[0][j], &c0, 32), memcpy(&words[0][j + 4], &d0, 32);
        memcpy(&words[1][j], &c1, 32), memcpy(&words[1][j + 4], &d1, 32);
        memcpy(&words[2][j], &c2, 32), memcpy(&words[2][j + 4], &d2, 32);
        memcpy(&words[3][j], &c3, 32), memcpy(&words[3][j + 4], &d3, 32);
    }
    for (int w = 0; w < 4; w++)
        for (int j = 0; j < LANES; j++) out[w][j] = (uint32_t)words[w][j];
}

/* Box and Muller 1958: two words to two standard normal numbers. See streams.py, box_muller. */
static inline void box_muller(const uint32_t *w0, const uint32_t *w1, float *n0, float *n1) {
    for (int j = 0; j < LANES; j++) {
        float u = (float)(int32_t)(w0[j] >> 1) * 0x1p-31f + 0x1p-32f;
        uint32_t bits;
        memcpy(&bits, &u, 4);
        int32_t exponent = (int32_t)(bits >> 23) - 127;
        uint32_t mantissa = (bits & 0x7FFFFFu) | 0x3F800000u;
        int32_t large = mantissa > 0x3FB504F3u; /* above the square root of two */
        mantissa -= (uint32_t)large << 23;
        exponent += large;
        float m;
        memcpy(&m, &mantissa, 4);
        float s = (m - 1.0f) / (m + 1.0f);
        float z = s * s;
        float series = z * (1.0f / 9) + (1.0f / 7);
        series = series * z + (1.0f / 5);
        series = series * z + (1.0f / 3);
        series = series * z;
        float s2 = s + s;
        float e = (float)exponent;
        float logarithm = e * 0.693359375f + (e * -2.12194440e-4f + (s2 * series + s2));
        float radius = sqrtf(logarithm * -2.0f);

        uint32_t quadrant = (w1[j] + 0x20000000u) >> 30;
        int32_t rest = (int32_t)(w1[j] - (quadrant << 30));
        float x = (float)rest * 1.4629180792671596e-9f; /* pi / 2 / 2^30 */
        float y = x * x;
        float sine = y * (1.0f / 362880) + (-1.0f / 5040);
        sine = sine * y + (1.0f / 120);
        sine = sine * y + (-1.0f / 6);
        sine = (sine * y) * x + x;
        float cosine = y * (-1.0f / 3628800) + (1.0f / 40320);
        cosine = cosine * y + (-1.0f / 720);
        cosine = cosine * y + (1.0f / 24);
        cosine = cosine * y + (-1.0f / 2);
        cosine = cosine * y + 1.0f;
        uint32_t odd = quadrant & 1u;
        float c = odd ? sine : cosine;
        float d = odd ? cosine : sine;
        c = (quadrant == 1u || quadrant == 2u) ? -c : c;
        d = quadrant >= 2u ? -d : d;
        n0[j] = radius * c;
        n1[j] = radius * d;
    }
}

/* 2^24 u of the tile's elements. */
static inline void tile_uniform(Key key, uint64_t tile, uint32_t *out) {
    uint32_t words[4][LANES];
    philox(key, tile * LANES, words);
    for (int w = 0; w < 4; w++)
        for (int j = 0; j < LANES; j++) out[w * LANES + j] = words[w][j] >> 8;
}

static inline void tile_normal(Key key, uint64_t tile, float *out) {
    uint32_t words[4][LANES];
    philox(key, tile * LANES, words);
    box_muller(words[0], words[1], out, out + LANES);
    box_muller(words[2], words[3], out + 2 * LANES, out + 3 * LANES);
}

/* outs[k][i] = parent[i] + sigma_k * noise[i] inside recipe k's interval, parent[i] elsewhere, for
 * the `count` elements from `start` on, a multiple of TILE. */
void evo_perturb(const float *parent, float *const *outs, const Recipe *recipes, uint32_t siblings,
                 uint64_t start, uint64_t count, Key uniform_key, Key normal_key) {
    for (uint64_t i = 0; i < count; i += TILE) {
        uint32_t u[TILE];
        float noise[TILE], from[TILE], to[TILE];
        uint64_t n = count - i < TILE ? count - i : TILE;
        tile_uniform(uniform_key, (start + i) / TILE, u);
        tile_normal(normal_key, (start + i) / TILE, noise);
        memcpy(from, parent + i, n * sizeof(float));
        for (uint32_t k = 0; k < siblings; k++) {
            Recipe r = recipes[k];
            for (int j = 0; j < TILE; j++) {
                float changed = from[j] + noise[j] * r.sigma;
                to[j] = ((u[j] - r.low) & 0xFFFFFFu) < r.width ? changed : from[j];
            }
            memcpy(outs[k] + i, to, n * sizeof(float));
        }
    }
}
