/* Makes a unitary diagonal by nodes, the slow part of programming a mesh. In double. */
#include "common.h"

#define NOTHING 1e-13

/* Rows (or columns) a and b of `count` elements, `stride` doubles apart: [a; b] becomes m [a; b], m [4] complex. */
static inline void rotate(double *a, double *b, int64_t count, int64_t stride, const double *m) {
    for (int64_t k = 0; k < count; k++, a += stride, b += stride) {
        double ar = a[0], ai = a[1], br = b[0], bi = b[1];
        a[0] = m[0] * ar - m[1] * ai + m[2] * br - m[3] * bi, a[1] = m[0] * ai + m[1] * ar + m[2] * bi + m[3] * br;
        b[0] = m[4] * ar - m[5] * ai + m[6] * br - m[7] * bi, b[1] = m[4] * ai + m[5] * ar + m[6] * bi + m[7] * br;
    }
}

/* work [n, n] complex. orders [count, 3]: side (0 right, 1 left), the row (column) of the element to null, upper port.
   A right node acts on columns upper, upper + 1 and nulls the first; a left one on rows, and nulls the second.
   angles [count, 2]: theta and phi of each node. */
EXPORT void NAME(mesh_null)(double *work, int64_t n, const int32_t *orders, int64_t count, double *angles) {
    for (int64_t i = 0; i < count; i++, orders += 3, angles += 2) {
        int64_t left = orders[0], line = orders[1], upper = orders[2], step = left ? n : 1;
        double *a = work + 2 * (left ? upper * n + line : line * n + upper), *b = a + 2 * step;
        double first = hypot(a[0], a[1]), second = hypot(b[0], b[1]);
        double real = b[0] * a[0] + b[1] * a[1], imaginary = b[1] * a[0] - b[0] * a[1]; /* b conj(a) */
        double theta = 2 * (left ? atan2(first, second) : atan2(second, first));
        double phi = left ? atan2(imaginary, real) : -atan2(-imaginary, -real);
        if (first < NOTHING || second < NOTHING) /* a phase of rounding errors */
            phi = 0;
        double s = sin(theta / 2), c = cos(theta / 2), gr = -sin(theta / 2), gi = cos(theta / 2);
        double pr = cos(phi), pi = sin(phi), er = gr * pr - gi * pi, ei = gr * pi + gi * pr;
        angles[0] = theta, angles[1] = phi;
        /* node = i e^{i theta / 2} [[e^{i phi} s, c], [e^{i phi} c, -s]]; from the right its adjoint, transposed */
        if (left) {
            const double m[8] = {er * s, ei * s, gr * c, gi * c, er * c, ei * c, -gr * s, -gi * s};
            rotate(work + 2 * upper * n, work + 2 * (upper + 1) * n, n, 2, m);
        } else {
            const double m[8] = {er * s, -ei * s, gr * c, -gi * c, er * c, -ei * c, -gr * s, gi * s};
            rotate(work + 2 * upper, work + 2 * (upper + 1), n, 2 * n, m);
        }
    }
}
