/* What the protocol asks of a device, and what it knows of the line. Numbers of all integers on the line are little
   endian. device.c answers for a device made of stages; only run_stage (net.h) touches what computes. */
#ifndef DEVICE_H
#define DEVICE_H

#include <stdint.h>

#include "network.h"

/* Outcomes; the numbers travel in a reply's status. */
enum {
    OUTCOME_OK = 0,
    OUTCOME_STALE = 1,
    OUTCOME_LENGTH = 2,
    OUTCOME_ADDRESS = 3,
    OUTCOME_VALUE = 4,
    OUTCOME_FAULT = 5,
    OUTCOME_VERSION = 6,
    OUTCOME_TYPE = 7,
    OUTCOME_SATURATED = 0x80 /* a flag, beside OUTCOME_OK */
};

extern const uint8_t device_manifest[];
extern const uint32_t device_manifest_size;
extern const uint8_t device_segments[DEVICE_SEGMENTS][2];

/* Rows through a segment. `id` names the query: pseudo-noise is keyed by it. */
typedef struct {
    uint32_t id;
    uint8_t segment;
    uint8_t repeats_log2;
    const uint8_t *data;
    uint16_t length;
} device_query;

/* Answers into `out` (`room` bytes) and sets `*length`; gives an outcome, perhaps with OUTCOME_SATURATED. */
uint8_t device_run(const device_query *query, uint8_t *out, uint16_t room, uint16_t *length);

/* The parameters' memory. A write that is refused changes nothing. */
uint8_t device_write(uint32_t address, const uint8_t *data, uint16_t count);
void device_read(uint32_t address, uint8_t *data, uint16_t count);

/* The safe state: all parameters 0. */
void device_park(void);

/* Numbers for telemetry: the name of the index-th and its value; 0 after the last. */
const char *device_number(unsigned index, int32_t *value);

#endif
