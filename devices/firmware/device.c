/* A device made of stages: rows, segments, repeats and the parameters' memory. It knows no line and no arithmetic. */
#include "device.h"

#include <string.h>

#include "net.h"

static uint8_t parameters[DEVICE_PARAMETER_BYTES];
static uint32_t saturated_rows;

static int16_t get16(const uint8_t *bytes)
{
    int32_t code = (int32_t)bytes[0] | ((int32_t)bytes[1] << 8);
    return (int16_t)(code < 32768 ? code : code - 65536);
}

static void put16(uint8_t *bytes, int32_t value)
{
    bytes[0] = (uint8_t)((uint32_t)value & 0xff);
    bytes[1] = (uint8_t)((uint32_t)value >> 8 & 0xff);
}

/* One row, one shot, from boundary lo to hi. */
static int shot(unsigned lo, unsigned hi, const int16_t *in, int16_t *out, uint32_t key)
{
    int16_t between[2][DEVICE_WIDEST];
    for (unsigned stage = lo; stage < hi; stage++) {
        int16_t *to = stage + 1 == hi ? out : between[stage & 1];
        if (run_stage(stage, parameters, in, to, net_mix(key ^ stage)) != 0)
            return -1;
        in = to;
    }
    return 0;
}

/* The mean of 2^repeats_log2 shots, rounded half up, into `mean`. -1: fault; 1: a value at the end of the read-out. */
static int row(const device_query *q, unsigned number, const int16_t *in, unsigned width, int32_t *mean)
{
    const uint8_t *segment = device_segments[q->segment];
    const int32_t shots = (int32_t)1 << q->repeats_log2;
    const uint32_t key = net_mix(net_mix(q->id) + number);
    int saturated = 0;
    for (unsigned j = 0; j < width; j++)
        mean[j] = shots / 2;
    for (int32_t n = 0; n < shots; n++) {
        int16_t out[DEVICE_WIDEST];
        if (shot(segment[0], segment[1], in, out, net_mix(key + (uint32_t)n)) != 0)
            return -1;
        for (unsigned j = 0; j < width; j++) {
            mean[j] += out[j];
            saturated |= out[j] == INT16_MAX || out[j] == INT16_MIN;
        }
    }
    for (unsigned j = 0; j < width; j++)
        mean[j] = mean[j] >= 0 ? mean[j] / shots : -((shots - 1 - mean[j]) / shots);
    return saturated;
}

uint8_t device_run(const device_query *q, uint8_t *out, uint16_t room, uint16_t *length)
{
    if (q->segment >= DEVICE_SEGMENTS)
        return OUTCOME_ADDRESS;
    if (q->repeats_log2 > DEVICE_MAX_REPEATS_LOG2)
        return OUTCOME_VALUE;
    const uint8_t *segment = device_segments[q->segment];
    const unsigned in_width = net_stages[segment[0]].in, out_width = net_stages[segment[1] - 1].out;
    const unsigned rows = q->length / (2 * in_width);
    if (rows == 0 || rows > DEVICE_ROWS || q->length != 2 * in_width * rows || 2 * out_width * rows > room)
        return OUTCOME_LENGTH;

    uint8_t outcome = OUTCOME_OK;
    for (unsigned r = 0; r < rows; r++) {
        int16_t in[DEVICE_WIDEST];
        int32_t mean[DEVICE_WIDEST];
        for (unsigned i = 0; i < in_width; i++)
            in[i] = get16(q->data + 2 * (r * in_width + i));
        int state = row(q, r, in, out_width, mean);
        if (state < 0)
            return OUTCOME_FAULT;
        if (state > 0) {
            outcome = OUTCOME_OK | OUTCOME_SATURATED;
            saturated_rows++;
        }
        for (unsigned j = 0; j < out_width; j++)
            put16(out + 2 * (r * out_width + j), mean[j]);
    }
    *length = (uint16_t)(2 * out_width * rows);
    return outcome;
}

/* Whether bytes at `address` are whole values of an array at `start` in its range; those outside of it do not matter. */
static uint8_t fits(const uint8_t *data, uint32_t address, uint32_t end, uint32_t start, uint32_t count, uint32_t size)
{
    const uint32_t stop = start + count * size;
    uint32_t from = address > start ? address : start, to = end < stop ? end : stop;
    if (from >= to)
        return OUTCOME_OK;
    if ((from - start) % size != 0 || (to - start) % size != 0)
        return OUTCOME_ADDRESS;
    for (; from < to; from += size) {
        const uint8_t *bytes = data + (from - address);
        int value = size == 2 ? get16(bytes) : bytes[0] < 128 ? bytes[0] : bytes[0] - 256;
        int top = size == 2 ? NET_BIAS_TOP : NET_WEIGHT_TOP;
        if (value < -top || value > top)
            return OUTCOME_VALUE;
    }
    return OUTCOME_OK;
}

uint8_t device_write(uint32_t address, const uint8_t *data, uint16_t count)
{
    if (address > DEVICE_PARAMETER_BYTES || count > DEVICE_PARAMETER_BYTES - address)
        return OUTCOME_ADDRESS;
    for (unsigned k = 0; k < DEVICE_STAGES; k++) {
        const net_stage *s = &net_stages[k];
        uint8_t outcome = fits(data, address, address + count, s->weight, (uint32_t)s->in * s->out, 1);
        if (outcome == OUTCOME_OK)
            outcome = fits(data, address, address + count, s->bias, s->out, 2);
        if (outcome != OUTCOME_OK)
            return outcome;
    }
    memcpy(parameters + address, data, count);
    return OUTCOME_OK;
}

void device_read(uint32_t address, uint8_t *data, uint16_t count)
{
    memcpy(data, parameters + address, count);
}

void device_park(void)
{
    memset(parameters, 0, sizeof parameters);
}

const char *device_number(unsigned index, int32_t *value)
{
    if (index == 0) {
        *value = (int32_t)(saturated_rows & INT32_MAX);
        return "saturated_rows";
    }
    if (index == 1) {
        *value = net_noise;
        return "noise_codes";
    }
    return 0;
}
