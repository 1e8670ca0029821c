/* An echo behind the firmware's protocol, its line on standard input and output: the device of serial_line.py. */
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "hzos.h"
#include "manifest.h"

static uint8_t leaving[4096];
static size_t filled;

static void leave(void)
{
    for (size_t sent = 0; sent < filled;) {
        ssize_t more = write(1, leaving + sent, filled - sent);
        if (more <= 0)
            _exit(1);
        sent += (size_t)more;
    }
    filled = 0;
}

int uart_get(void)
{
    return -1;
}

void uart_put(uint8_t byte)
{
    if (filled == sizeof leaving)
        leave();
    leaving[filled++] = byte;
}

void device_park(void)
{
}

const char *device_number(unsigned index, int32_t *value)
{
    (void)index, (void)value;
    return 0;
}

uint8_t device_run(const device_query *query, uint8_t *out, uint16_t room, uint16_t *length)
{
    if (query->length > room)
        return OUTCOME_LENGTH;
    memcpy(out, query->data, query->length);
    *length = query->length;
    return OUTCOME_OK;
}

uint8_t device_write(uint32_t address, const uint8_t *data, uint16_t count)
{
    (void)address, (void)data, (void)count;
    return OUTCOME_OK;
}

void device_read(uint32_t address, uint8_t *data, uint16_t count)
{
    (void)address;
    memset(data, 0, count);
}

int main(void)
{
    static hzos h;
    static uint8_t arriving[4096];
    hzos_start(&h, 1);
    for (ssize_t got; (got = read(0, arriving, sizeof arriving)) > 0; leave())
        for (ssize_t i = 0; i < got; i++)
            hzos_take(&h, arriving[i]);
    return 0;
}
