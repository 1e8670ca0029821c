/* HZO-S/1, the device's end: bytes in, bytes out. Frames are 00 COBS(header data crc32) 00; see docs/wire-serial.md.

   It holds one frame, one reply and the last HZOS_WINDOW results, whatever comes over the line. */
#ifndef HZOS_H
#define HZOS_H

#include <stdint.h>

#include "device.h"

enum { HZOS_HEADER = 8, HZOS_CRC = 4, HZOS_ROOM = HZOS_MTU - HZOS_HEADER - HZOS_CRC };

typedef struct {
    uint32_t id;
    uint16_t length;
    uint8_t outcome;
    uint8_t used;
    uint8_t data[HZOS_ROOM];
} hzos_result;

typedef struct {
    /* the frame that is coming in */
    uint8_t frame[HZOS_MTU];
    uint16_t length;
    uint8_t left;     /* bytes until the next code byte */
    uint8_t zero_due; /* a zero stands before the next code byte's bytes */
    uint8_t begun, dropped;
    /* the reply that goes out */
    uint8_t reply[HZOS_MTU];
    /* the session */
    uint32_t boot_id, nonce;
    uint8_t greeted, epoch;
    hzos_result cache[HZOS_WINDOW];
    /* counters */
    uint32_t runs, repeated, bad_frames;
    char telemetry[160];
    uint16_t telemetry_length;
} hzos;

/* What the board supplies. uart_put may wait; uart_get never does where there is something else to do. */
int uart_get(void); /* 0 to 255, or -1: nothing has come */
void uart_put(uint8_t byte);

/* As after power-on: epoch 0, nothing cached. `boot_id` must differ from the last time in its low 4 bits, if it can. */
void hzos_start(hzos *h, uint32_t boot_id);

/* Takes one byte from the line and answers the frame it completes. */
void hzos_take(hzos *h, uint8_t byte);

uint32_t hzos_crc32(const uint8_t *data, uint32_t count);

#endif
