/* The device of session.json: y = W x with 2 x 2 weights, everything as int16 / 256, rounded to nearest (ties to even);
   averaging changes nothing. */
#include <string.h>

#include "device.h"

const uint8_t device_manifest[] = {MANIFEST};
const uint32_t device_manifest_size = sizeof device_manifest;
static uint8_t weights[DEVICE_PARAMETER_BYTES];

static int32_t get16(const uint8_t *bytes)
{
    return (int16_t)(uint16_t)(bytes[0] | bytes[1] << 8);
}

uint8_t device_run(const device_query *query, uint8_t *out, uint16_t room, uint16_t *length)
{
    uint8_t outcome = OUTCOME_OK;
    if (query->segment != 0)
        return OUTCOME_ADDRESS;
    if (query->length == 0 || query->length % 4 != 0 || query->length > room)
        return OUTCOME_LENGTH;
    for (unsigned at = 0; at < query->length; at += 4)
        for (unsigned j = 0; j < 2; j++) {
            int64_t sum = 0;
            for (unsigned i = 0; i < 2; i++)
                sum += (int64_t)get16(weights + 4 * j + 2 * i) * get16(query->data + at + 2 * i);
            int64_t value = sum >= 0 ? sum / 256 : -((255 - sum) / 256), rest = sum - 256 * value;
            value += rest > 128 || (rest == 128 && value % 2 != 0);
            int64_t cut = value > INT16_MAX ? INT16_MAX : value < INT16_MIN ? INT16_MIN : value;
            if (cut != value)
                outcome = OUTCOME_SATURATED;
            out[at + 2 * j] = (uint8_t)(cut & 255);
            out[at + 2 * j + 1] = (uint8_t)((uint64_t)cut >> 8 & 255);
        }
    *length = query->length;
    return outcome;
}

uint8_t device_write(uint32_t address, const uint8_t *data, uint16_t count)
{
    if (address > sizeof weights || count > sizeof weights - address)
        return OUTCOME_ADDRESS;
    memcpy(weights + address, data, count);
    return OUTCOME_OK;
}

void device_read(uint32_t address, uint8_t *data, uint16_t count)
{
    memcpy(data, weights + address, count);
}
