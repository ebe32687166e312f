/* The draws of streams.py and the children of mutation.py on an NVIDIA GPU, a thread to a block.
 *
 * streams.py is the definition; this file must give the same bits, as philox.c does on CPUs. So it
 * uses integer arithmetic and the operations + - * / sqrt of IEEE alone, each rounded once, in the
 * same order as there, and is compiled without contraction (--fmad=false; division and square root
 * are exact unless asked otherwise). A thread has word w of its block for the elements
 * 16 w + lane of a tile, so that neighbouring threads read and write neighbouring elements.
 *
 * There are no headers, and no C++ outside the guard below: tests compile it for a CPU as well.
 */
typedef unsigned int Word;
typedef unsigned long long Long;

enum { LANES = 16, TILE = 4 * LANES, SIBLINGS = 4 };

typedef struct {
    Word low, width; /* the subnetwork's interval of u, in units of 2^-24 */
    float sigma;
    Word unused;
} Recipe;

typedef struct {
    const float *parent;
    float *outs[SIBLINGS];
    Recipe recipes[SIBLINGS];
    Long start, count, seed, name; /* name: hash of the parameter's name; start: of its elements */
    Long siblings;
} Draw;

/* Philox 4x32-10 (Salmon et al. 2011) of the counter (block, stream, name) with the seed as key. */
static __device__ void philox(Word block, Word stream, Long name, Long seed, Word c[4]) {
    Word key0 = (Word)seed, key1 = (Word)(seed >> 32);
    c[0] = block;
    c[1] = stream;
    c[2] = (Word)name;
    c[3] = (Word)(name >> 32);
    for (int round = 0; round < 10; round++) {
        const Word low = c[0] * 0xD2511F53u, low_high = __umulhi(c[0], 0xD2511F53u);
        const Word high = c[2] * 0xCD9E8D57u, high_high = __umulhi(c[2], 0xCD9E8D57u);
        c[0] = high_high ^ c[1] ^ key0;
        c[1] = high;
        c[2] = low_high ^ c[3] ^ key1;
        c[3] = low;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* Box and Muller 1958: two words to two standard normal numbers. See streams.py, box_muller. */
static __device__ void box_muller(Word w0, Word w1, float normal[2]) {
    float u = (float)(int)(w0 >> 1) * 4.656612873077393e-10f + 2.3283064365386963e-10f;
    Word bits = __float_as_uint(u); /* the constants are 2^-31 and 2^-32 */
    int exponent = (int)(bits - 0x3F3504F3u) >> 23;
    float m = __uint_as_float(bits - ((Word)exponent << 23));
    float s = (m - 1.0f) / (m + 1.0f);
    float z = s * s;
    float series = z * (1.0f / 7) + (1.0f / 5);
    series = series * z + (1.0f / 3);
    series = series * z;
    float s2 = s + s;
    float logarithm = (float)exponent * 0.6931471805599453f + (s2 * series + s2);
    float radius = sqrtf(logarithm * -2.0f);

    Word turn = w1 + 0x20000000u; /* the two highest bits are the quadrant */
    int rest = (int)(turn & 0x3FFFFFFFu) - 0x20000000;
    float x = (float)rest * 1.4629180792671596e-9f; /* pi / 2 / 2^30 */
    float y = x * x;
    float sine = y * -0.00019493497f + 0.008331958f;
    sine = sine * y + -0.16666651f;
    sine = (sine * y) * x + x;
    float cosine = y * 2.4435853e-05f + -0.0013887342f;
    cosine = cosine * y + 0.041666646f;
    cosine = cosine * y + (-1.0f / 2);
    cosine = cosine * y + 1.0f;
    int odd = turn >> 30 & 1;
    float c = odd ? sine : cosine;
    float d = odd ? cosine : sine;
    normal[0] = radius * __uint_as_float(__float_as_uint(c) ^ ((turn ^ turn << 1) & 0x80000000u));
    normal[1] = radius * __uint_as_float(__float_as_uint(d) ^ (turn & 0x80000000u));
}

/* outs[k][i] = parent[i] + sigma_k * noise[i] inside recipe k's interval, parent[i] elsewhere, for
 * the `count` elements from `start` on, a multiple of TILE. */
#ifdef __cplusplus
extern "C"
#endif
__global__ void evo_perturb(const Draw draw) {
    const Long block = (Long)blockIdx.x * blockDim.x + threadIdx.x;
    const Long first = block / LANES * TILE + block % LANES;
    if (first >= draw.count) return;

    Word uniform[4], words[4];
    float noise[4];
    const Word counter = (Word)(draw.start / 4 + block);
    philox(counter, 0, draw.name, draw.seed, uniform);
    philox(counter, 1, draw.name, draw.seed, words);
    box_muller(words[0], words[1], noise);
    box_muller(words[2], words[3], noise + 2);

    for (int w = 0; w < 4; w++) {
        const Long i = first + (Long)(w * LANES);
        if (i >= draw.count) return;
        const float parent = draw.parent[i];
        for (Long k = 0; k < draw.siblings; k++) {
            const Recipe recipe = draw.recipes[k];
            const Word distance = ((uniform[w] >> 8) - recipe.low) & 0xFFFFFFu;
            const float changed = parent + noise[w] * recipe.sigma;
            draw.outs[k][i] = distance < recipe.width ? changed : parent;
        }
    }
}
