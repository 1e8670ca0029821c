/* Which set of kernels this processor can run, and which sources the library was built from. */
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#ifdef HZO_X86
#include <cpuid.h>

/* The registers that the operating system saves: without it the wide ones must not be used. */
static uint32_t saved_registers(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has(uint32_t word, uint32_t bits) { return (word & bits) == bits; }

/* Intel SDM volume 2, CPUID. v3: AVX2, FMA, BMI1, BMI2, F16C, MOVBE; v4 adds AVX-512 F, DQ, CD, BW, VL. */
EXPORT const char *hzo_level(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29))
        return "base";
    uint32_t saved = saved_registers();
    if (!has(saved, 0x6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !has(b, 1u << 3 | 1u << 5 | 1u << 8))
        return "base";
    return has(saved, 0xE6) && has(b, 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31) ? "v4" : "v3";
}
#else
EXPORT const char *hzo_level(void) { return "base"; }
#endif

EXPORT const char *hzo_sources(void) { return HZO_SOURCES; }
