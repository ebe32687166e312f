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

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "two 32-bit words are joined into one of 64 bits, low word first"
#endif

enum { LANES = 16, TILE = 4 * LANES };

typedef struct {
    uint32_t low, width; /* the subnetwork's interval of u, in units of 2^-24 */
    float sigma;
    uint32_t unused;
} Recipe;

typedef struct {
    uint64_t seed, name; /* name: hash of the parameter's name */
} Key;

/* A 32-bit word sits in a 64-bit lane whose upper half is ignored: vector units multiply just so,
 * and nothing has to be moved between lanes until the end. */
typedef uint64_t Words __attribute__((vector_size(32)));

#ifdef __AVX2__
#include <immintrin.h>
static inline Words multiply(Words a, Words b) {
    return (Words)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
#else
static inline Words multiply(Words a, Words b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }
#endif

/* What all blocks of a parameter share. */
typedef struct {
    Words round[10][2]; /* each round's key */
    Words name_high, first; /* the counter's last word; the product of its third */
} Schedule;

static Schedule schedule(Key key) {
    const Words zero = {0};
    Schedule s = {.name_high = zero + (key.name >> 32),
                  .first = multiply(zero + 0xCD9E8D57u, zero + key.name)};
    for (uint64_t i = 0; i < 10; i++) {
        s.round[i][0] = zero + ((uint32_t)key.seed + i * 0x9E3779B9u);
        s.round[i][1] = zero + ((key.seed >> 32) + i * 0xBB67AE85u);
    }
    return s;
}

/* Philox 4x32-10 (Salmon et al. 2011) of the counters (block + lane, stream, name) for the streams
 * 0 and 1 at once: they share their keys, and most of their first three rounds, in which the
 * stream's number has not yet reached every word. */
static inline void philox_lanes(const Schedule *key, Words counter, Words c[2][4]) {
    const Words zero = {0}, m0 = zero + 0xD2511F53u, m1 = zero + 0xCD9E8D57u;
    const Words a = multiply(m0, counter), b = key->first; /* only word 0 knows the stream yet */
    const Words word2 = (a >> 32) ^ key->name_high ^ key->round[0][1];
    const Words word0 = (b >> 32) ^ key->round[0][0];
    const Words e = multiply(m1, word2); /* round 2, after which words 0 and 1 are still shared */
    for (uint64_t s = 0; s < 2; s++) {
        Words d = multiply(m0, word0 ^ s);
        c[s][0] = (e >> 32) ^ b ^ key->round[1][0];
        c[s][1] = e;
        c[s][2] = (d >> 32) ^ a ^ key->round[1][1];
        c[s][3] = d;
    }
    for (int round = 2; round < 10; round++)
        for (int s = 0; s < 2; s++) {
            Words low = multiply(m0, c[s][0]), high = multiply(m1, c[s][2]);
            c[s][0] = (high >> 32) ^ (c[s][1] ^ key->round[round][0]);
            c[s][2] = (low >> 32) ^ (c[s][3] ^ key->round[round][1]);
            c[s][1] = high;
            c[s][3] = low;
        }
}

static inline void philox(const Schedule *key, uint64_t block, uint32_t uniform[4][LANES],
                          uint32_t normal[4][LANES]) {
    for (int j = 0; j < LANES; j += 8) { /* even lanes and odd ones, joined without shuffling */
        Words even[2][4], odd[2][4];
        philox_lanes(key, (Words){0, 2, 4, 6} + (block + (uint64_t)j), even);
        philox_lanes(key, (Words){1, 3, 5, 7} + (block + (uint64_t)j), odd);
        for (int w = 0; w < 4; w++) {
            Words u = (even[0][w] & 0xFFFFFFFFu) | (odd[0][w] << 32);
            Words n = (even[1][w] & 0xFFFFFFFFu) | (odd[1][w] << 32);
            memcpy(&uniform[w][j], &u, sizeof u);
            memcpy(&normal[w][j], &n, sizeof n);
        }
    }
    for (int w = 0; w < 4; w++)
        for (int j = 0; j < LANES; j++) uniform[w][j] >>= 8;
}

static inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

/* Box and Muller 1958: two words to two standard normal numbers. See streams.py, box_muller. */
static inline void box_muller(const uint32_t *w0, const uint32_t *w1, float *n0, float *n1) {
    for (int j = 0; j < LANES; j++) {
        float u = (float)(int32_t)(w0[j] >> 1) * 0x1p-31f + 0x1p-32f;
        uint32_t bits = bits_of(u);
        int32_t exponent = (int32_t)(bits - 0x3F3504F3u) >> 23;
        float m = float_of(bits - ((uint32_t)exponent << 23));
        float s = (m - 1.0f) / (m + 1.0f);
        float z = s * s;
        float series = z * (1.0f / 7) + (1.0f / 5);
        series = series * z + (1.0f / 3);
        series = series * z;
        float s2 = s + s;
        float logarithm = (float)exponent * 0.6931471805599453f + (s2 * series + s2);
        float radius = sqrtf(logarithm * -2.0f);

        uint32_t turn = w1[j] + 0x20000000u; /* the two highest bits are the quadrant */
        int32_t rest = (int32_t)(turn & 0x3FFFFFFFu) - 0x20000000;
        float x = (float)rest * 1.4629180792671596e-9f; /* pi / 2 / 2^30 */
        float y = x * x;
        float sine = y * -0.00019493497f + 0.008331958f;
        sine = sine * y + -0.16666651f;
        sine = (sine * y) * x + x;
        float cosine = y * 2.4435853e-05f + -0.0013887342f;
        cosine = cosine * y + 0.041666646f;
        cosine = cosine * y + (-1.0f / 2);
        cosine = cosine * y + 1.0f;
        int32_t odd = (int32_t)(turn << 1);
        float c = odd < 0 ? sine : cosine;
        float d = odd < 0 ? cosine : sine;
        n0[j] = radius * float_of(bits_of(c) ^ ((turn ^ (turn << 1)) & 0x80000000u));
        n1[j] = radius * float_of(bits_of(d) ^ (turn & 0x80000000u));
    }
}

/* One whole tile for one recipe. Values of u are below 2^24, so signed comparison serves. */
static inline void tile_child(const uint32_t *restrict u, const float *restrict noise,
                              const float *restrict parent, float *restrict child, Recipe r) {
    for (int j = 0; j < TILE; j++) {
        float changed = parent[j] + noise[j] * r.sigma;
        int32_t distance = (int32_t)((u[j] - r.low) & 0xFFFFFFu);
        child[j] = distance < (int32_t)r.width ? changed : parent[j];
    }
}

/* outs[k][i] = parent[i] + sigma_k * noise[i] inside recipe k's interval, parent[i] elsewhere, for
 * the `count` elements from `start` on, a multiple of TILE. */
void evo_perturb(const float *parent, float *const *outs, const Recipe *recipes, uint32_t siblings,
                 uint64_t start, uint64_t count, Key key) {
    uint32_t u[4][LANES], words[4][LANES];
    float noise[TILE], from[TILE], to[TILE];
    const Schedule rounds = schedule(key);
    for (uint64_t i = 0; i < count; i += TILE) {
        uint64_t n = count - i;
        philox(&rounds, (start + i) / 4, u, words);
        box_muller(words[0], words[1], noise, noise + LANES);
        box_muller(words[2], words[3], noise + 2 * LANES, noise + 3 * LANES);
        if (n >= TILE) {
            for (uint32_t k = 0; k < siblings; k++)
                tile_child(u[0], noise, parent + i, outs[k] + i, recipes[k]);
            continue;
        }
        memset(from, 0, sizeof from);
        memcpy(from, parent + i, n * sizeof(float));
        for (uint32_t k = 0; k < siblings; k++) {
            tile_child(u[0], noise, from, to, recipes[k]);
            memcpy(outs[k] + i, to, n * sizeof(float));
        }
    }
}
