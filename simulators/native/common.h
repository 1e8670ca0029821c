/* Names, and the elementary functions written so that a compiler turns loops over them into vector code.

   Every kernel works on rows by their own key: the same row gives the same bits in any batch. */
#ifndef HZO_COMMON_H
#define HZO_COMMON_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
#define NAME_(x, level) NAME__(x, level)
#define NAME__(x, level) hzo_##x##_##level
#define JOIN2_(a, b) a##_##b
#define JOIN2(a, b) JOIN2_(a, b)
#define NAME(x) NAME_(x, HZO_LEVEL) /* hzo_normals_f32_v4 and so on */

#define GOLDEN 0x9E3779B97F4A7C15u

/* Finaliser of SplitMix64, as in noise.py. */
static inline uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

/* Key of a sub-purpose, as noise.derive(key, step). */
static inline uint64_t derive(uint64_t key, uint64_t step) {
    return mix(mix(key + mix(GOLDEN)) + mix((step + 1) * GOLDEN));
}
#endif
