/* A small fixed-point network: int8 weights, int16 biases, int16 activations, int32 sums, a clipped non-linearity.

   out = clip((((bias << NET_ACTIVATION_SHIFT) + sum(weight * in) + half) >> NET_WEIGHT_SHIFT) + noise) */
#ifndef NET_H
#define NET_H

#include <stdint.h>

#include "device.h"

enum { NET_LINEAR, NET_RELU, NET_HARD_TANH };

typedef struct {
    uint16_t in, out;
    uint16_t weight, bias; /* byte addresses in the parameters' memory */
    uint8_t kind;
} net_stage;

extern const net_stage net_stages[DEVICE_STAGES];

/* Peak of the pseudo-noise in output codes, 0 to 1024. Its standard deviation is this / sqrt(6). */
extern int32_t net_noise;

/* The part to replace by your converters: one stage, one shot. `parameters` is the parameters' memory, `key` names the
   shot (pseudo-noise). Returns 0, or not 0 where the hardware failed: the host gets FAULT. */
int run_stage(unsigned stage, const uint8_t *parameters, const int16_t *in, int16_t *out, uint32_t key);

/* Spreads a number over 32 bits; one to one. */
uint32_t net_mix(uint32_t value);

#endif
