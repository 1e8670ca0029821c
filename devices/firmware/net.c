#include "net.h"

int32_t net_noise = NET_NOISE;

/* No sum may leave 32 bits: 128 * 2^15 for each input, the bias, and room to round. */
typedef char sums_fit_in_32_bits[(DEVICE_WIDEST <= 400 && NET_BIAS_TOP <= 256 && NET_ACTIVATION_SHIFT <= 14) ? 1 : -1];

/* floor(value / 2^bits), without the right shift of negative numbers that C leaves open. */
static int32_t shift_down(int32_t value, int bits)
{
    int32_t unit = (int32_t)1 << bits;
    return value >= 0 ? value / unit : -((unit - 1 - value) / unit);
}

static int16_t clip(int32_t value, int32_t low, int32_t high)
{
    return (int16_t)(value < low ? low : value > high ? high : value);
}

static int16_t activated(int32_t value, uint8_t kind)
{
    const int32_t one = (int32_t)1 << NET_ACTIVATION_SHIFT;
    if (kind == NET_RELU)
        return clip(value, 0, INT16_MAX);
    if (kind == NET_HARD_TANH)
        return clip(value, -one, one);
    return clip(value, INT16_MIN, INT16_MAX);
}

/* The finaliser of MurmurHash3 (A. Appleby, public domain). */
uint32_t net_mix(uint32_t value)
{
    value ^= value >> 16;
    value *= UINT32_C(0x85ebca6b);
    value ^= value >> 13;
    value *= UINT32_C(0xc2b2ae35);
    value ^= value >> 16;
    return value;
}

/* Two uniform numbers added: a triangle over +-net_noise. */
static int32_t noise(uint32_t key, uint32_t output)
{
    uint32_t drawn = net_mix(key + output * UINT32_C(0x9e3779b9));
    int32_t centred = (int32_t)(drawn & 0xffff) + (int32_t)(drawn >> 16) - 65535;
    return shift_down(net_noise * centred, 16);
}

static int32_t weight(uint8_t byte)
{
    return byte < 128 ? byte : (int32_t)byte - 256;
}

static int32_t bias(const uint8_t *bytes)
{
    int32_t code = (int32_t)bytes[0] | ((int32_t)bytes[1] << 8);
    return code < 32768 ? code : code - 65536;
}

int run_stage(unsigned stage, const uint8_t *parameters, const int16_t *in, int16_t *out, uint32_t key)
{
    const net_stage *s = &net_stages[stage];
    const uint8_t *w = parameters + s->weight;
    for (unsigned j = 0; j < s->out; j++) {
        int32_t sum = bias(parameters + s->bias + 2 * j) * ((int32_t)1 << NET_ACTIVATION_SHIFT);
        for (unsigned i = 0; i < s->in; i++)
            sum += weight(*w++) * in[i];
        sum = shift_down(sum + ((int32_t)1 << (NET_WEIGHT_SHIFT - 1)), NET_WEIGHT_SHIFT);
        if (net_noise != 0)
            sum += noise(key, j);
        out[j] = activated(sum, s->kind);
    }
    return 0;
}
