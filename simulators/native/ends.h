/* What happens at the two ends of a stage, in one pass over its rows: converter, bias, noise, gain.
   Included once for each REAL and its SUFFIX, after draws.h. */

#ifndef HZO_RINT
#define HZO_RINT
static inline float rint_f32(float x) { return rintf(x); }
static inline double rint_f64(double x) { return rint(x); }
#endif

#define F(x) JOIN2(x, SUFFIX)
#define EXPORTED(x) NAME(F(x))
#define TILE 64 /* pairs of normals kept in the first cache between their making and their use */

/* Nearest multiple of the step after saturation; NaN stays NaN. */
static inline REAL F(converted)(REAL x, REAL low, REAL high, REAL inverse, REAL step, int steps) {
    x = x < low ? low : x;
    x = x > high ? high : x;
    return steps ? F(rint)(x * inverse) * step : x;
}

static inline void F(convert_copy)(const REAL *restrict in, int64_t count, const REAL *port, int steps, REAL *restrict out) {
    const REAL low = port[0], high = port[1], inverse = port[2], step = port[3];
    for (int64_t i = 0; i < count; i++)
        out[i] = F(converted)(in[i], low, high, inverse, step, steps);
}

static inline void F(convert_here)(REAL *values, int64_t count, const REAL *port, int steps) {
    const REAL low = port[0], high = port[1], inverse = port[2], step = port[3];
    for (int64_t i = 0; i < count; i++)
        values[i] = F(converted)(values[i], low, high, inverse, step, steps);
}

/* `port` holds low, high, 1 / step, step; step 0: no converter. `in` may be `out`. */
EXPORT void EXPORTED(convert)(const REAL *in, int64_t count, const REAL *port, REAL *out) {
    if (in == out && port[3] != 0)
        F(convert_here)(out, count, port, 1);
    else if (in == out)
        F(convert_here)(out, count, port, 0);
    else if (port[3] != 0)
        F(convert_copy)(in, count, port, 1, out);
    else
        F(convert_copy)(in, count, port, 0, out);
}

/* `how`: the port, then gain, variance in the dark, variance for each unit of level. */
static inline void F(read_columns)(REAL *restrict values, const REAL *restrict bias, const REAL *restrict noise, int64_t count,
                                   const REAL *how, int shot, int steps) {
    const REAL low = how[0], high = how[1], inverse = how[2], step = how[3];
    const REAL gain = how[4], dark = how[5], per_level = how[6], std = F(sqrt)(how[5]);
    for (int64_t j = 0; j < count; j++) {
        REAL x = values[j] + bias[j];
        REAL level = x > 0 ? x : 0;
        x += (shot ? F(sqrt)(dark + per_level * level) : std) * noise[j];
        values[j] = F(converted)(x * gain, low, high, inverse, step, steps);
    }
}

static inline void F(read_part)(REAL *values, const REAL *bias, const REAL *noise, int64_t count, const REAL *how) {
    int shot = how[6] != 0, steps = how[3] != 0;
    if (shot)
        steps ? F(read_columns)(values, bias, noise, count, how, 1, 1) : F(read_columns)(values, bias, noise, count, how, 1, 0);
    else
        steps ? F(read_columns)(values, bias, noise, count, how, 0, 1) : F(read_columns)(values, bias, noise, count, how, 0, 0);
}

/* Pairs `from` to `from + count` of a row's normal numbers, the bits of `normals`; TILE at most. Hashes are made first and
   then read as halves (low one first, as in numpy's twin): compilers do not find this split by themselves. */
static inline void F(normal_tile)(uint64_t seed, int64_t from, int64_t count, REAL *restrict first, REAL *restrict second) {
    union {
        uint64_t whole[TILE];
        int32_t half[2 * TILE];
    } hash;
    count = (count + 15) & ~(int64_t)15; /* full vectors: what is too much is not used */
    for (int64_t j = 0; j < count; j++)
        hash.whole[j] = mix(seed + (uint64_t)(from + j + 1) * GOLDEN);
    for (int64_t j = 0; j < count; j++) {
        REAL u = ((REAL)(hash.half[2 * j + 1] & 0x7FFFFFFF) + (REAL)0.5) * (REAL)0x1p-31;
        REAL angle = (REAL)hash.half[2 * j] * (REAL)(3.14159265358979323846 * 0x1p-31);
        REAL radius = F(sqrt)((REAL)-2 * F(log)(u)), sine, cosine;
        F(sincos)(angle, &sine, &cosine);
        first[j] = cosine * radius;
        second[j] = sine * radius;
    }
}

/* values [rows, width], in place: convert(gain (x + bias + std(x + bias) n)), n as `normals` of the same keys and stream.
   Without noise (both variances 0) no number is drawn, and keys may be NULL. */
EXPORT void EXPORTED(read_out)(REAL *values, const uint64_t *keys, int64_t rows, int64_t width, uint64_t stream,
                               const REAL *bias, const REAL *how) {
    static const REAL none[TILE];
    int noisy = how[5] != 0 || how[6] != 0;
    int64_t pairs = noisy ? (width + 1) / 2 : width;
    REAL first[TILE], second[TILE];
    for (int64_t i = 0; i < rows; i++) {
        uint64_t seed = noisy ? derive(keys[i], stream) : 0;
        REAL *row = values + i * width;
        for (int64_t from = 0; from < pairs; from += TILE) {
            int64_t left = pairs - from < TILE ? pairs - from : TILE, beyond = from + pairs;
            if (noisy)
                F(normal_tile)(seed, from, left, first, second);
            F(read_part)(row + from, bias ? bias + from : none, noisy ? first : none, left, how);
            left = width - beyond < left ? width - beyond : left;
            if (noisy)
                F(read_part)(row + beyond, bias ? bias + beyond : none, second, left, how);
        }
    }
}

#undef F
#undef EXPORTED
#undef TILE
