/* All kernels, compiled once for each instruction set (HZO_LEVEL names it). */
#include "functions.h"
#include "phases.h"
#include "unitary.h"

#define REAL float
#define SUFFIX f32
#define BITS 24
#include "draws.h"
#include "ends.h"
#include "casts.h"
#include "mesh.h"
#undef REAL
#undef SUFFIX
#undef BITS

#define REAL double
#define SUFFIX f64
#define BITS 53
#include "draws.h"
#include "ends.h"
#include "casts.h"
#include "mesh.h"
#undef REAL
#undef SUFFIX
#undef BITS
