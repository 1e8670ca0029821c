/* Phasors in double, sine and cosine of small angles, and truncated normal numbers: what meshes need beside draws.h. */
#ifndef HZO_PHASES_H
#define HZO_PHASES_H
#include "functions.h"

/* Without a promise to inline, clang keeps calls in loops, which are then no vector code. */
#define INLINE static inline __attribute__((always_inline))

/* In front of a loop over the LANES of a tile: left alone, clang fits it to the 64-bit hashes, at half the width. */
#if defined(__clang__)
#define LANEWISE _Pragma("clang loop vectorize_width(16) interleave(disable)")
#else
#define LANEWISE
#endif

/* Cosine and sine of each phase (rad) as straight-line code; polynomials of fdlibm (Sun, 1993) after reduction by
   multiples of pi/2. Phases beyond 10,000 rad go to the C library. */
static void phasors(const double *restrict phases, int64_t count, double *restrict cosines, double *restrict sines) {
    const double magic = 6755399441055744.0; /* 1.5 * 2^52: adding it rounds to an integer, found in the low bits */
    for (int64_t i = 0; i < count; i++) {
        double shifted = phases[i] * 0.63661977236758134308 + magic, q = shifted - magic;
        uint64_t quadrant;
        memcpy(&quadrant, &shifted, 8);
        double r = ((phases[i] - q * 1.57079632673412561417) - q * 6.07710050630396597660e-11) - q * 2.02226624879595063154e-21;
        double z = r * r;
        double s = 1.58969099521155010221e-10;
        s = s * z - 2.50507602534068634195e-08;
        s = s * z + 2.75573137070700676789e-06;
        s = s * z - 1.98412698298579493134e-04;
        s = s * z + 8.33333333332248946124e-03;
        s = s * z - 1.66666666666666324348e-01;
        s = s * z * r + r;
        double c = -1.13596475577881948265e-11;
        c = c * z + 2.08757232129817482790e-09;
        c = c * z - 2.75573143513906633035e-07;
        c = c * z + 2.48015872894767294178e-05;
        c = c * z - 1.38888888888741095749e-03;
        c = c * z + 4.16666666666666019037e-02;
        c = c * z * z - 0.5 * z + 1.0;
        double first = quadrant & 1 ? c : s, second = quadrant & 1 ? s : c;
        sines[i] = quadrant & 2 ? -first : first;
        cosines[i] = (quadrant + 1) & 2 ? -second : second;
    }
    for (int64_t i = 0; i < count; i++)
        if (!(fabs(phases[i]) < 1e4))
            cosines[i] = cos(phases[i]), sines[i] = sin(phases[i]);
}

/* Sine and cosine of pi times the signed 32-bit `turn` over 2^31, without a reduction: own fits on a quarter turn to
   either side, 3e-9 off beside rounding. */
INLINE void circle_f32(uint32_t turn, float *sine, float *cosine) {
    float w = (float)((int32_t)(turn << 1) >> 1) * 0x1p-31f, z = w * w;
    float s = 7.722012694e-2f, c = -2.439671614e-2f;
    s = s * z - 5.980451730e-1f;
    s = s * z + 2.550031377f;
    s = s * z - 5.167706879f;
    s = (s * z + 3.141592580f) * w;
    c = c * z + 2.349375587e-1f;
    c = c * z - 1.335212057f;
    c = c * z + 4.058709164f;
    c = c * z - 4.934802137f;
    c = c * z + 1.0f;
    uint32_t flip = (turn ^ (turn << 1)) & 0x80000000u; /* the other half of the circle */
    *sine = float_of(bits_of(s) ^ flip), *cosine = float_of(bits_of(c) ^ flip);
}

INLINE void circle_f64(uint32_t turn, double *sine, double *cosine) {
    sincos_f64((double)(int32_t)turn * (3.14159265358979323846 * 0x1p-31), sine, cosine);
}

/* Sine and cosine of |x| < pi/4 (Cephes, single precision). */
INLINE void sincos_small_f32(float x, float *sine, float *cosine) {
    float z = x * x;
    *sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
    *cosine = ((2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f) * z * z - 0.5f * z + 1.0f;
}

INLINE void sincos_small_f64(double x, double *sine, double *cosine) { sincos_f64(x, sine, cosine); }

/* Size of a normal number, from how far its 31 uniform bits lie from the nearer end, and its sign from which end:
   q, the part of the mass further out on both sides, runs from `lost` to 1. */
INLINE float outer_f32(uint32_t bits, float lost) {
    uint32_t far = bits & 0x40000000u ? 0x7FFFFFFFu - bits : bits;
    return lost + (1.0f - lost) * (((float)(int32_t)far + 0.5f) * 0x1p-30f);
}

INLINE double outer_f64(uint32_t bits, double lost) {
    uint32_t far = bits & 0x40000000u ? 0x7FFFFFFFu - bits : bits;
    return lost + (1.0 - lost) * (((double)far + 0.5) * 0x1p-30);
}

/* Inverse of the complementary error function (Giles, GPU Computing Gems 2011, chapter 10: single precision). */
INLINE float erfcinv_f32(float q) {
    float w = -log_f32(q * (2.0f - q));
    float v = w - 2.5f, u = sqrtf(w) - 3.0f;
    float p = 2.81022636e-08f;
    p = p * v + 3.43273939e-07f;
    p = p * v - 3.5233877e-06f;
    p = p * v - 4.39150654e-06f;
    p = p * v + 2.1858087e-04f;
    p = p * v - 1.25372503e-03f;
    p = p * v - 4.17768164e-03f;
    p = p * v + 2.46640727e-01f;
    p = p * v + 1.50140941f;
    float t = -2.00214257e-04f;
    t = t * u + 1.00950558e-04f;
    t = t * u + 1.34934322e-03f;
    t = t * u - 3.67342844e-03f;
    t = t * u + 5.73950773e-03f;
    t = t * u - 7.6224613e-03f;
    t = t * u + 9.43887047e-03f;
    t = t * u + 1.00167406f;
    t = t * u + 2.83297682f;
    return (w < 5.0f ? p : t) * (1.0f - q);
}

/* Normal number cut where `lost` of the mass lies outside, by the inverse of its distribution function. */
INLINE float truncated_f32(uint32_t bits, float lost) {
    float size = 1.41421356f * erfcinv_f32(outer_f32(bits, lost));
    return bits & 0x40000000u ? size : -size;
}

INLINE double truncated_f64(uint32_t bits, double lost) {
    double q = outer_f64(bits, lost), z = erfcinv_f32((float)q);
    /* Halley's step takes seven digits to all. */
    double step = (erfc(z) - q) / (-1.12837916709551257390 * exp(-z * z));
    z -= step / (1 + z * step);
    return bits & 0x40000000u ? 1.41421356237309504880 * z : -1.41421356237309504880 * z;
}
#endif
