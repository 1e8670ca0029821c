/* A board whose line is standard input and output; at the end it writes the count of bad frames to standard error. */
#include <stdio.h>

#include "hzos.h"

int uart_get(void)
{
    return getchar();
}

void uart_put(uint8_t byte)
{
    putchar(byte);
}

void device_park(void)
{
}

const char *device_number(unsigned index, int32_t *value)
{
    (void)index, (void)value;
    return 0;
}

int main(void)
{
    static hzos h;
    hzos_start(&h, BOOT);
    for (int byte; (byte = uart_get()) >= 0;)
        hzos_take(&h, (uint8_t)byte);
    fprintf(stderr, "%lu", (unsigned long)h.bad_frames);
    return 0;
}
