/* Logarithm, sine and cosine of float as straight-line code, a few units in the last place off: loops over them become
   vector code. Doubles use the C library. Polynomials: Cephes (Moshier), single precision. */
#ifndef HZO_FUNCTIONS_H
#define HZO_FUNCTIONS_H
#include "common.h"

static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}

/* Natural logarithm of a normal x > 0. */
static inline float log_f32(float x) {
    uint32_t bits = bits_of(x) - 0x3F3504F3u; /* so that the mantissa ends up in [sqrt(1/2), sqrt(2)) */
    float exponent = (float)((int32_t)bits >> 23);
    float m = float_of((bits & 0x007FFFFFu) + 0x3F3504F3u) - 1.0f;
    float z = m * m;
    float p = 7.0376836292e-2f;
    p = p * m - 1.1514610310e-1f;
    p = p * m + 1.1676998740e-1f;
    p = p * m - 1.2420140846e-1f;
    p = p * m + 1.4249322787e-1f;
    p = p * m - 1.6668057665e-1f;
    p = p * m + 2.0000714765e-1f;
    p = p * m - 2.4999993993e-1f;
    p = p * m + 3.3333331174e-1f;
    p = p * m * z + exponent * -2.12194440e-4f - 0.5f * z;
    return m + p + exponent * 0.693359375f;
}

/* Sine and cosine of |x| < 10,000 rad. */
static inline void sincos_f32(float x, float *sine, float *cosine) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, found in the low bits */
    float shifted = x * 0.636619772367581f + magic;
    uint32_t quadrant = bits_of(shifted);
    float q = shifted - magic;
    float r = ((x - q * 1.5703125f) - q * 4.837512969970703125e-4f) - q * 7.549789948768648e-8f;
    float z = r * r;
    float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * r + r;
    float c = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
    uint32_t swap = 0u - (quadrant & 1u);
    uint32_t sb = bits_of(s), cb = bits_of(c);
    uint32_t first = (sb & ~swap) | (cb & swap), second = (cb & ~swap) | (sb & swap);
    *sine = float_of(first ^ ((quadrant & 2u) << 30));
    *cosine = float_of(second ^ (((quadrant + 1u) & 2u) << 30));
}

static inline float sqrt_f32(float x) { return sqrtf(x); }
static inline double log_f64(double x) { return log(x); }
static inline double sqrt_f64(double x) { return sqrt(x); }
static inline void sincos_f64(double x, double *sine, double *cosine) { *sine = sin(x), *cosine = cos(x); }
#endif
