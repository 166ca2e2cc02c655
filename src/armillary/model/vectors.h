/* Vectors of fp32 and what is computed with them, for the C kernels of this package.
 *
 * Vectors are GCC's generic ones, so the same source serves AVX2, AVX-512 and NEON. Numbers need not be finite.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#define LANES 16
#else
#define LANES 8
#endif
typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline int up(int n, int to) { return (n + to - 1) / to * to; }

static inline vec pick(ivec where, vec a, vec b) { return (vec)((where & (ivec)a) | (~where & (ivec)b)); }

/* e^x for x up to 88, to about one unit in the last place (polynomial on [-ln2/2, ln2/2], Cephes); NaN stays NaN. */
static inline vec vexp(vec x) {
#ifdef __AVX512F__
    x = (vec)_mm512_max_ps(_mm512_set1_ps(-87.3f), (__m512)x); /* of two numbers one of which is NaN it takes the second */
    vec k = (vec)_mm512_roundscale_ps((__m512)(x * 1.44269504088896341f), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = pick(x < -87.3f, (vec){0} - 87.3f, x);
    /* the power of two nearest to e^x, with the exponent's bias: positive, so cutting off rounds down */
    ivec exponent = __builtin_convertvector(x * 1.44269504088896341f + 127.5f, ivec);
    vec k = __builtin_convertvector(exponent, vec) - 127.0f;
#endif
    x = x - k * 0.693359375f + k * 2.12194440e-4f;
    vec p = x * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * x + 8.3334519073e-3f;
    p = p * x + 4.1665795894e-2f;
    p = p * x + 1.6666665459e-1f;
    p = p * x + 5.0000001201e-1f;
    p = p * x * x + x + 1.0f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)k);
#else
    return p * (vec)(exponent << 23);
#endif
}

/* 1 / (1 + e^-x) */
static inline vec sigmoid(vec x) { return 1.0f / (1.0f + vexp(pick(x < -88.0f, (vec){0} + 88.0f, -x))); }

/* Where a number is NaN the largest may be any: what is computed from it shows it. */
#ifdef __AVX512F__
static inline vec vmax(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline float largest(vec x) { return _mm512_reduce_max_ps((__m512)x); }
#else
static inline vec vmax(vec a, vec b) { return pick(a < b, b, a); }
static inline float largest(vec x) {
    float most = x[0];
    for (int i = 1; i < LANES; i++) most = most < x[i] ? x[i] : most;
    return most;
}
#endif

static inline float vsum(vec x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}
