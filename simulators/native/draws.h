/* Keyed draws, the same numbers as noise.py to rounding. Included once for each REAL and its SUFFIX. */

#define F(x) JOIN2(x, SUFFIX)
#define EXPORTED(x) NAME(F(x))

/* Radius sqrt(-2 ln u) and angle 2 pi v from the two halves of a hash (Box and Muller, 1958). */
static inline void F(polar)(uint64_t hash, REAL *radius, REAL *angle) {
    REAL u = ((REAL)(int32_t)((hash >> 32) & 0x7FFFFFFFu) + (REAL)0.5) * (REAL)0x1p-31;
    *angle = (REAL)(int32_t)(uint32_t)hash * (REAL)(3.14159265358979323846 * 0x1p-31);
    *radius = F(sqrt)((REAL)-2 * F(log)(u));
}

/* out [rows, count] = scale * standard normals; column j and column j + pairs come from hash j. */
EXPORT void EXPORTED(normals)(const uint64_t *keys, int64_t rows, uint64_t stream, int64_t count, REAL scale, REAL *out) {
    int64_t pairs = (count + 1) / 2, both = count - pairs;
    for (int64_t i = 0; i < rows; i++) {
        uint64_t seed = derive(keys[i], stream);
        REAL *first = out + i * count, *second = first + pairs;
        REAL radius, angle, sine, cosine;
        for (int64_t j = 0; j < both; j++) {
            F(polar)(mix(seed + (uint64_t)(j + 1) * GOLDEN), &radius, &angle);
            F(sincos)(angle, &sine, &cosine);
            first[j] = cosine * radius * scale;
            second[j] = sine * radius * scale;
        }
        if (both < pairs) {
            F(polar)(mix(seed + (uint64_t)pairs * GOLDEN), &radius, &angle);
            F(sincos)(angle, &sine, &cosine);
            first[both] = cosine * radius * scale;
        }
    }
}

/* out [rows, count] uniform in [0, 1): the BITS upper bits of each hash. */
EXPORT void EXPORTED(uniforms)(const uint64_t *keys, int64_t rows, uint64_t stream, int64_t count, REAL *out) {
    for (int64_t i = 0; i < rows; i++) {
        uint64_t seed = derive(keys[i], stream);
        for (int64_t j = 0; j < count; j++)
            out[i * count + j] = (REAL)(int64_t)(mix(seed + (uint64_t)(j + 1) * GOLDEN) >> (64 - BITS)) * ((REAL)1 / (REAL)((int64_t)1 << BITS));
    }
}

#undef F
#undef EXPORTED
