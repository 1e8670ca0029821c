/* Light through a mesh of two-port nodes. Included once for each REAL and its SUFFIX.

   A tile of LANES fields (samples, or basis vectors) walks the nodes together, planar: port m's real parts, then its
   imaginary parts. Each lane does the same arithmetic, so a row does not depend on its neighbours.
   parts [nodes, 8]: cos and sin of theta, of phi, of the first and of the second coupler (the second times the loss).
   ends [ports, 2]: cos and sin of the output phases. pairs [nodes, 2]: upper and lower port. */

#define F(x) JOIN2(x, SUFFIX)
#define EXPORTED(x) NAME(F(x))
#ifndef LANES
#define LANES 16
#endif

/* Fill parts and ends from phases [2 nodes + ports] and fixed [nodes, 4]; turns [2, phases] is scratch. */
EXPORT void EXPORTED(mesh_parts)(const double *phases, const double *fixed, int64_t nodes, int64_t ports, double *turns,
                                 REAL *parts, REAL *ends) {
    int64_t count = 2 * nodes + ports;
    phasors(phases, count, turns, turns + count);
    for (int64_t i = 0; i < nodes; i++) {
        REAL *p = parts + 8 * i;
        p[0] = (REAL)turns[i], p[1] = (REAL)turns[count + i];
        p[2] = (REAL)turns[nodes + i], p[3] = (REAL)turns[count + nodes + i];
        for (int k = 0; k < 4; k++)
            p[4 + k] = (REAL)fixed[4 * i + k];
    }
    for (int64_t m = 0; m < ports; m++)
        ends[2 * m] = (REAL)turns[2 * nodes + m], ends[2 * m + 1] = (REAL)turns[count + 2 * nodes + m];
}

/* Rows start .. start + count of in [rows, ports], real (planes 1) or complex (planes 2), into the tile. */
INLINE void F(load)(const REAL *in, int64_t planes, int64_t ports, int64_t start, int64_t count, REAL *tile) {
    for (int64_t m = 0; m < ports; m++, tile += 2 * LANES)
        for (int64_t k = 0; k < LANES; k++) {
            const REAL *field = in + planes * ((start + (k < count ? k : 0)) * ports + m);
            tile[k] = field[0], tile[LANES + k] = planes == 2 ? field[1] : 0;
        }
}

INLINE void F(store)(const REAL *tile, int64_t ports, int64_t start, int64_t count, REAL *out) {
    for (int64_t k = 0; k < count; k++)
        for (int64_t m = 0; m < ports; m++) {
            REAL *field = out + 2 * ((start + k) * ports + m);
            field[0] = tile[2 * m * LANES + k], field[1] = tile[(2 * m + 1) * LANES + k];
        }
}

/* A field times cosine + i sine. */
INLINE void F(turn)(REAL cosine, REAL sine, REAL *restrict field) {
    for (int k = 0; k < LANES; k++) {
        REAL real = field[k];
        field[k] = cosine * real - sine * field[LANES + k];
        field[LANES + k] = cosine * field[LANES + k] + sine * real;
    }
}

/* [[c, i s], [i s, c]], a coupler. */
INLINE void F(couple)(REAL c, REAL s, REAL *restrict up, REAL *restrict low) {
    for (int k = 0; k < LANES; k++) {
        REAL ar = up[k], ai = up[LANES + k], br = low[k], bi = low[LANES + k];
        up[k] = c * ar - s * bi, up[LANES + k] = c * ai + s * br;
        low[k] = c * br - s * ai, low[LANES + k] = c * bi + s * ar;
    }
}

/* ---- one set of phases for all rows */

/* The 2 x 2 matrices [nodes, 8] of the nodes, computed in double, and the ends, for one phase vector. */
static void F(elements)(const double *phases, const double *fixed, int64_t nodes, int64_t ports, double *turns,
                        REAL *elements, REAL *ends) {
    int64_t count = 2 * nodes + ports;
    phasors(phases, count, turns, turns + count);
    for (int64_t i = 0; i < nodes; i++, fixed += 4) {
        REAL *t = elements + 8 * i;
        double tr = turns[i], ti = turns[count + i], pr = turns[nodes + i], pi = turns[count + nodes + i];
        double both = fixed[0] * fixed[2], cross = fixed[1] * fixed[3], up = fixed[1] * fixed[2], low = fixed[0] * fixed[3];
        double ar = both * tr - cross, ai = both * ti, br = low * tr + up, bi = low * ti;
        t[0] = (REAL)(ar * pr - ai * pi), t[1] = (REAL)(ar * pi + ai * pr);
        t[2] = (REAL)(-up * ti), t[3] = (REAL)(up * tr + low);
        t[4] = (REAL)(-br * pi - bi * pr), t[5] = (REAL)(br * pr - bi * pi);
        t[6] = (REAL)(both - cross * tr), t[7] = (REAL)(-cross * ti);
    }
    for (int64_t m = 0; m < ports; m++)
        ends[2 * m] = (REAL)turns[2 * nodes + m], ends[2 * m + 1] = (REAL)turns[count + 2 * nodes + m];
}

INLINE void F(node)(const REAL *restrict t, REAL *restrict up, REAL *restrict low) {
    for (int k = 0; k < LANES; k++) {
        REAL ar = up[k], ai = up[LANES + k], br = low[k], bi = low[LANES + k];
        up[k] = t[0] * ar - t[1] * ai + t[2] * br - t[3] * bi;
        up[LANES + k] = t[0] * ai + t[1] * ar + t[2] * bi + t[3] * br;
        low[k] = t[4] * ar - t[5] * ai + t[6] * br - t[7] * bi;
        low[LANES + k] = t[4] * ai + t[5] * ar + t[6] * bi + t[7] * br;
    }
}

/* out [vectors, rows, ports] complex: in [rows, ports] through the mesh at each of phases [vectors, phases].
   Scratch: turns [2, phases] double, elements [8 nodes + 2 ports], tile [2 LANES ports]. */
EXPORT void EXPORTED(mesh_walk)(const double *phases, int64_t vectors, const double *fixed, const int32_t *pairs,
                                int64_t nodes, int64_t ports, const REAL *in, int64_t planes, int64_t rows, REAL *out,
                                double *turns, REAL *elements, REAL *tile) {
    REAL *ends = elements + 8 * nodes;
    for (int64_t v = 0; v < vectors; v++, out += 2 * rows * ports) {
        F(elements)(phases + v * (2 * nodes + ports), fixed, nodes, ports, turns, elements, ends);
        for (int64_t start = 0; start < rows; start += LANES) {
            int64_t count = rows - start < LANES ? rows - start : LANES;
            F(load)(in, planes, ports, start, count, tile);
            for (int64_t i = 0; i < nodes; i++)
                F(node)(elements + 8 * i, tile + 2 * LANES * pairs[2 * i], tile + 2 * LANES * pairs[2 * i + 1]);
            for (int64_t m = 0; m < ports; m++)
                F(turn)(ends[2 * m], ends[2 * m + 1], tile + 2 * LANES * m);
            F(store)(tile, ports, start, count, out);
        }
    }
}

/* ---- phase noise of its own for every row */

/* Draws `step` and `step + half` of a seed, times sigma: normals that share a hash, as noise.normals; or, with `lost`,
   the mass cut off a normal, truncated ones from a hash each, as phase_noise.truncated. Steps count in GOLDEN. */
INLINE void F(pair)(uint64_t seed, uint64_t step, uint64_t half, REAL sigma, REAL lost, REAL *first, REAL *second) {
    if (lost > 0) {
        *first = sigma * F(truncated)((uint32_t)(mix(seed + step) >> 33), lost);
        *second = sigma * F(truncated)((uint32_t)(mix(seed + step + half) >> 33), lost);
    } else {
        uint64_t hash = mix(seed + step);
        REAL radius, angle, sine, cosine;
        F(polar)(hash, &radius, &angle);
        F(circle)((uint32_t)hash, &sine, &cosine);
        *first = sigma * radius * cosine, *second = sigma * radius * sine;
    }
}

/* A node whose phases are off by draws of `seed + step` in each lane. */
INLINE void F(noisy_node)(const uint64_t *restrict seed, uint64_t step, uint64_t half, REAL sigma, REAL lost, int small,
                                 const REAL *restrict p, REAL *restrict up, REAL *restrict low) {
    LANEWISE
    for (int k = 0; k < LANES; k++) {
        REAL inner, outer, si, ci, so, co;
        F(pair)(seed[k], step, half, sigma, lost, &inner, &outer);
        if (small) {
            F(sincos_small)(inner, &si, &ci);
            F(sincos_small)(outer, &so, &co);
        } else {
            F(sincos)(inner, &si, &ci);
            F(sincos)(outer, &so, &co);
        }
        REAL tr = p[0] * ci - p[1] * si, ti = p[0] * si + p[1] * ci;
        REAL pr = p[2] * co - p[3] * so, pi = p[2] * so + p[3] * co;
        REAL ar = pr * up[k] - pi * up[LANES + k], ai = pr * up[LANES + k] + pi * up[k];
        REAL br = low[k], bi = low[LANES + k];
        REAL cr = p[4] * ar - p[5] * bi, ci2 = p[4] * ai + p[5] * br;
        REAL dr = p[4] * br - p[5] * ai, di = p[4] * bi + p[5] * ar;
        REAL er = tr * cr - ti * ci2, ei = tr * ci2 + ti * cr;
        up[k] = p[6] * er - p[7] * di, up[LANES + k] = p[6] * ei + p[7] * dr;
        low[k] = p[6] * dr - p[7] * ei, low[LANES + k] = p[6] * di + p[7] * er;
    }
}

/* The output phases with draws of their own: columns m and m + (ports + 1) / 2 make a pair. */
INLINE void F(noisy_ends)(const uint64_t *seed, REAL sigma, REAL lost, const REAL *ends, int64_t ports, REAL *tile) {
    int64_t pairs = (ports + 1) / 2;
    for (int64_t m = 0; m < pairs; m++)
        for (int k = 0; k < LANES; k++) {
            REAL off[2], sine, cosine;
            F(pair)(seed[k], (uint64_t)(m + 1) * GOLDEN, (uint64_t)pairs * GOLDEN, sigma, lost, off, off + 1);
            for (int64_t half = 0; half < 2 && m + half * pairs < ports; half++) {
                const REAL *end = ends + 2 * (m + half * pairs);
                REAL *field = tile + 2 * LANES * (m + half * pairs), real = field[k], imaginary = field[LANES + k];
                F(sincos)(off[half], &sine, &cosine);
                REAL c = end[0] * cosine - end[1] * sine, s = end[0] * sine + end[1] * cosine;
                field[k] = c * real - s * imaginary, field[LANES + k] = c * imaginary + s * real;
            }
        }
}

/* out [rows, ports] complex: every row of in meets phase noise of sigma rad, drawn from its key under two streams. */
EXPORT void EXPORTED(mesh_noisy)(const uint64_t *keys, uint64_t stream, uint64_t end_stream, REAL sigma, REAL lost,
                                 const REAL *parts, const REAL *ends, const int32_t *pairs, int64_t nodes, int64_t ports,
                                 const REAL *in, int64_t planes, int64_t rows, REAL *out, REAL *tile) {
    /* Draws end at 6.7 sigma. */
    int small = sigma * (REAL)6.8 < (REAL)0.785;
    for (int64_t start = 0; start < rows; start += LANES) {
        int64_t count = rows - start < LANES ? rows - start : LANES;
        uint64_t seed[LANES], end_seed[LANES];
        for (int64_t k = 0; k < LANES; k++) {
            uint64_t key = keys[start + (k < count ? k : 0)];
            seed[k] = derive(key, stream), end_seed[k] = derive(key, end_stream);
        }
        F(load)(in, planes, ports, start, count, tile);
        for (int64_t i = 0; i < nodes; i++) {
            REAL *up = tile + 2 * LANES * pairs[2 * i], *low = tile + 2 * LANES * pairs[2 * i + 1];
            uint64_t step = (uint64_t)(i + 1) * GOLDEN, half = (uint64_t)nodes * GOLDEN;
            const REAL *p = parts + 8 * i;
            if (lost > 0)
                F(noisy_node)(seed, step, half, sigma, lost, 0, p, up, low);
            else if (small)
                F(noisy_node)(seed, step, half, sigma, 0, 1, p, up, low);
            else
                F(noisy_node)(seed, step, half, sigma, 0, 0, p, up, low);
        }
        F(noisy_ends)(end_seed, sigma, lost, ends, ports, tile);
        F(store)(tile, ports, start, count, out);
    }
}

/* ---- what single phase shifters meet and reach, for probes by low-rank update

   slots [phases]: where a shifter's record goes, or -1. */

INLINE void F(note)(const REAL *field, int32_t slot, int64_t count, REAL *record, int64_t stride) {
    if (slot >= 0)
        for (int64_t k = 0; k < count; k++)
            record[slot * stride + 2 * k] = field[k], record[slot * stride + 2 * k + 1] = field[LANES + k];
}

/* With `inject`, row s is dark until light of amplitude 1 starts right behind the shifter of slot s. */
INLINE void F(light)(REAL *field, int32_t slot, int64_t start, int64_t inject) {
    if (inject && slot >= start && slot < start + LANES)
        field[slot - start] += 1;
}

/* Fields right behind the shifters, record [tiles, count of slots, LANES], and out [rows, ports] behind the mesh. */
EXPORT void EXPORTED(mesh_record)(const REAL *parts, const REAL *ends, const int32_t *pairs, const int32_t *slots,
                                  int64_t nodes, int64_t ports, const REAL *in, int64_t planes, int64_t rows,
                                  int64_t noted, int64_t inject, REAL *record, REAL *out, REAL *tile) {
    for (int64_t start = 0; start < rows; start += LANES, record += 2 * LANES * noted) {
        int64_t count = rows - start < LANES ? rows - start : LANES;
        F(load)(in, planes, ports, start, count, tile);
        for (int64_t i = 0; i < nodes; i++) {
            REAL *up = tile + 2 * LANES * pairs[2 * i], *low = tile + 2 * LANES * pairs[2 * i + 1];
            const REAL *p = parts + 8 * i;
            F(turn)(p[2], p[3], up);
            F(note)(up, slots[nodes + i], LANES, record, 2 * LANES);
            F(light)(up, slots[nodes + i], start, inject);
            F(couple)(p[4], p[5], up, low);
            F(turn)(p[0], p[1], up);
            F(note)(up, slots[i], LANES, record, 2 * LANES);
            F(light)(up, slots[i], start, inject);
            F(couple)(p[6], p[7], up, low);
        }
        for (int64_t m = 0; m < ports; m++) {
            REAL *field = tile + 2 * LANES * m;
            F(turn)(ends[2 * m], ends[2 * m + 1], field);
            F(note)(field, slots[2 * nodes + m], LANES, record, 2 * LANES);
            F(light)(field, slots[2 * nodes + m], start, inject);
        }
        F(store)(tile, ports, start, count, out);
    }
}

/* What light right behind each shifter becomes at the outputs: record [slots, ports] complex. */
EXPORT void EXPORTED(mesh_reach)(const REAL *parts, const REAL *ends, const int32_t *pairs, const int32_t *slots,
                                 int64_t nodes, int64_t ports, REAL *record, REAL *tile) {
    for (int64_t start = 0; start < ports; start += LANES) {
        int64_t count = ports - start < LANES ? ports - start : LANES;
        for (int64_t m = 0; m < ports; m++) {
            REAL *field = tile + 2 * LANES * m;
            for (int k = 0; k < 2 * LANES; k++)
                field[k] = k < LANES && k == m - start;
            F(note)(field, slots[2 * nodes + m], count, record + 2 * start, 2 * ports);
            F(turn)(ends[2 * m], ends[2 * m + 1], field);
        }
        for (int64_t i = nodes - 1; i >= 0; i--) {
            REAL *up = tile + 2 * LANES * pairs[2 * i], *low = tile + 2 * LANES * pairs[2 * i + 1];
            const REAL *p = parts + 8 * i;
            F(couple)(p[6], p[7], up, low);
            F(note)(up, slots[i], count, record + 2 * start, 2 * ports);
            F(turn)(p[0], p[1], up);
            F(couple)(p[4], p[5], up, low);
            F(note)(up, slots[nodes + i], count, record + 2 * start, 2 * ports);
            F(turn)(p[2], p[3], up);
        }
    }
}

/* out [probes, rows, ports] = base [rows, ports] + sum over j of step[probe, j] light[tile, from[probe, j], row]
   reach[slot[probe, j], port]; light [tiles, lights, LANES] holds row b in tile b / LANES. reach [slots, 2, ports]
   complex: the vectors, then the vectors times i. */
EXPORT void EXPORTED(mesh_update)(const REAL *base, const REAL *reach, const int32_t *slot, const REAL *light,
                                  int64_t lights, const int32_t *from, const REAL *step, int64_t probes, int64_t rank,
                                  int64_t rows, int64_t ports, REAL *out) {
    int64_t width = 2 * ports;
    for (int64_t start = 0; start < rows; start += LANES, light += 2 * LANES * lights)
        for (int64_t q = 0; q < probes; q++)
            for (int64_t b = start; b < start + LANES && b < rows; b++) {
                const REAL *old = base + b * width;
                REAL *new = out + (q * rows + b) * width;
                for (int64_t j = q * rank; j < (q + 1) * rank; j++, old = new) {
                    const REAL *met = light + 2 * ((int64_t)from[j] * LANES + b - start), *d = step + 2 * j;
                    REAL real = d[0] * met[0] - d[1] * met[1], imaginary = d[0] * met[1] + d[1] * met[0];
                    const REAL *a = reach + 2 * width * (int64_t)slot[j], *turned = a + width;
                    for (int64_t n = 0; n < width; n++)
                        new[n] = old[n] + real * a[n] + imaginary * turned[n];
                }
            }
}

#undef F
#undef EXPORTED
