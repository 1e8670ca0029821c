/* Casts to small number formats, the result kept in REAL. Included once for each REAL and its SUFFIX, after draws.h.

   A format is five numbers: stored mantissa bits; the exponents between which the spacing follows the value (equal ones:
   fixed point); the largest finite value; what stands for all beyond it. NaN stays NaN. */

#ifndef HZO_CASTS_H
#define HZO_CASTS_H
typedef struct {
    int64_t mantissa, low_exponent, high_exponent;
    double largest, beyond;
} hzo_format;

static inline double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

static inline uint64_t bits_of_double(double x) {
    uint64_t bits;
    memcpy(&bits, &x, 8);
    return bits;
}

/* The upper 53 bits of a hash as a number in [0, 1), in steps every instruction set has. */
static inline double unit_of(uint64_t hash) {
    double low = double_of(((hash >> 11) & 0xFFFFFFFFu) | 0x4330000000000000u);
    double high = double_of((hash >> 43) | 0x4530000000000000u);
    return ((high - 0x1.00000001p84) + low) * 0x1p-53;
}

/* Spacing of the format at x, and its reciprocal: powers of two. */
static inline void spacing(double x, int64_t mantissa, int64_t low, int64_t high, double *step, double *inverse) {
    int64_t exponent = (int64_t)(bits_of_double(x) & 0x7FF0000000000000u);
    exponent = exponent < low ? low : exponent;
    exponent = exponent > high ? high : exponent;
    exponent -= mantissa;
    *step = double_of((uint64_t)exponent);
    *inverse = double_of(0x7FE0000000000000u - (uint64_t)exponent);
}

/* Nearest float32, ties to even: adding a number whose last place is the spacing does the rounding. */
static inline float nearest_f32(float x, uint32_t shift, uint32_t low, float top, float largest, float beyond) {
    uint32_t bits = bits_of(x), sign = bits & 0x80000000u, size = bits & 0x7FFFFFFFu;
    float a = float_of(size);
    a = a < top ? a : top;
    uint32_t exponent = bits_of(a) & 0x7F800000u;
    exponent = exponent > low ? exponent : low;
    float magic = float_of((exponent + shift) | 0x00400000u);
    float y = (a + magic) - magic;
    y = y > largest ? beyond : y;
    uint32_t found = bits_of(y) | sign;
    return float_of(size > 0x7F800000u ? bits | 0x00400000u : found);
}

/* bf16 is the upper half of a float32, subnormal numbers too. */
static inline float brain_f32(float x, uint32_t largest, uint32_t beyond) {
    uint32_t bits = bits_of(x), size = bits & 0x7FFFFFFFu;
    uint32_t found = (size + 0x7FFFu + ((size >> 16) & 1u)) & 0xFFFF0000u;
    found = found > largest ? beyond : found;
    found |= bits & 0x80000000u;
    return float_of(size > 0x7F800000u ? bits | 0x00400000u : found);
}

#define FOR_EACH(body)                                                                                                 \
    if (in == out)                                                                                                     \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            float x = out[i];                                                                                          \
            out[i] = body;                                                                                             \
        }                                                                                                              \
    else                                                                                                               \
        for (int64_t i = 0; i < count; i++) {                                                                          \
            float x = in[i];                                                                                           \
            out[i] = body;                                                                                             \
        }

EXPORT void NAME(nearest_f32)(const float *in, int64_t count, const hzo_format *format, float *out) {
    const float largest = (float)format->largest, beyond = (float)format->beyond;
    if (format->mantissa == 7 && format->low_exponent == -126) {
        const uint32_t top = bits_of(largest), other = bits_of(beyond);
        FOR_EACH(brain_f32(x, top, other))
        return;
    }
    const uint32_t shift = (uint32_t)(23 - format->mantissa) << 23, low = (uint32_t)(127 + format->low_exponent) << 23;
    const float top = beyond == largest ? largest : 2 * largest;
    FOR_EACH(nearest_f32(x, shift, low, top, largest, beyond))
}
#undef FOR_EACH

EXPORT void NAME(nearest_f64)(const double *in, int64_t count, const hzo_format *format, double *out) {
    const int64_t mantissa = format->mantissa << 52;
    const int64_t low = (1023 + format->low_exponent) << 52, high = (1023 + format->high_exponent) << 52;
    const double largest = format->largest, beyond = format->beyond;
    for (int64_t i = 0; i < count; i++) {
        double x = in[i], step, inverse;
        spacing(x, mantissa, low, high, &step, &inverse);
        double y = rint(x * inverse) * step;
        out[i] = fabs(y) > largest ? copysign(beyond, x) : y;
    }
}
#endif

#define EXPORTED(x) NAME(JOIN2(x, SUFFIX))
#define TILE 64

/* values [rows, width], in place: up with the probability of what is cut off. */
EXPORT void EXPORTED(stochastic)(REAL *values, const uint64_t *keys, int64_t rows, int64_t width, uint64_t stream,
                                 const hzo_format *format) {
    const int64_t mantissa = format->mantissa << 52;
    const int64_t low = (1023 + format->low_exponent) << 52, high = (1023 + format->high_exponent) << 52;
    const double largest = format->largest, beyond = format->beyond;
    double unit[TILE];
    for (int64_t i = 0; i < rows; i++) {
        uint64_t seed = derive(keys[i], stream);
        for (int64_t from = 0; from < width; from += TILE) {
            int64_t left = width - from < TILE ? width - from : TILE, whole = (left + 15) & ~(int64_t)15;
            REAL *restrict part = values + i * width + from;
            for (int64_t j = 0; j < whole; j++)
                unit[j] = unit_of(mix(seed + (uint64_t)(from + j + 1) * GOLDEN));
            for (int64_t j = 0; j < left; j++) {
                double x = part[j], step, inverse;
                spacing(x, mantissa, low, high, &step, &inverse);
                double y = floor(x * inverse + unit[j]) * step;
                part[j] = (REAL)(fabs(y) > largest ? copysign(beyond, x) : y);
            }
        }
    }
}

#undef EXPORTED
#undef TILE
