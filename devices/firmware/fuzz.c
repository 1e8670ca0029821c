/* Feeds the firmware damaged frames and garbage: fuzz [FRAMES [SEED]]. Build with sanitizers (make fuzz). It fails
   where a sanitizer does, where a reply is no valid frame, or where the device no longer answers. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hzos.h"

static hzos h;
static uint64_t state;
static uint8_t sent[HZOS_MTU + 8];
static size_t sent_count;
static unsigned long replies, outcomes[8];

static uint32_t draw(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

static void fail(const char *why)
{
    fprintf(stderr, "fuzz: %s\n", why);
    exit(1);
}

int uart_get(void)
{
    return -1;
}

/* Checks what the device sends: whole frames with the right checksum, never longer than the line allows. */
void uart_put(uint8_t byte)
{
    uint8_t raw[HZOS_MTU];
    size_t size = 0, at = 0;
    if (byte != 0) {
        if (sent_count == sizeof sent)
            fail("a reply is longer than the line allows");
        sent[sent_count++] = byte;
        return;
    }
    while (at < sent_count) {
        size_t code = sent[at++];
        if (at + code - 1 > sent_count || size + code > sizeof raw + 1)
            fail("a reply is no COBS");
        memcpy(raw + size, sent + at, code - 1);
        size += code - 1;
        at += code - 1;
        if (code != 255 && at < sent_count)
            raw[size++] = 0;
    }
    if (sent_count != 0) {
        const uint8_t *tail = raw + size - 4;
        if (size < 12 || ((uint32_t)tail[0] | (uint32_t)tail[1] << 8 | (uint32_t)tail[2] << 16 | (uint32_t)tail[3] << 24)
                             != hzos_crc32(raw, (uint32_t)size - 4))
            fail("a reply's checksum is wrong");
        replies++;
        outcomes[raw[2] & 7]++;
    }
    sent_count = 0;
}

static size_t encode(const uint8_t *data, size_t count, uint8_t *line)
{
    size_t code_at = 0, end = 1;
    for (size_t i = 0; i < count; i++) {
        if (data[i] != 0)
            line[end++] = data[i];
        if (data[i] == 0 || end - code_at == 255) {
            line[code_at] = (uint8_t)(end - code_at);
            code_at = end++;
        }
    }
    line[code_at] = (uint8_t)(end - code_at);
    return end;
}

/* A frame as a host would send it, or nearly: most fields are right most of the time. */
static size_t frame(uint8_t *line)
{
    static uint32_t id = 1;
    uint8_t raw[HZOS_MTU + 16] = {0};
    size_t data = draw(4) == 0 ? draw(HZOS_ROOM + 4) : 2 * DEVICE_WIDEST * draw(3);
    uint8_t type = (uint8_t)(draw(20) == 0 ? draw(16) : draw(8) < 4 ? 3 : 1 + draw(6));
    uint32_t offset = type == 3 ? (draw(8) ? ++id : id - draw(12)) : draw(3) ? draw(100) : draw(UINT32_MAX);
    uint8_t region = (uint8_t)(type == 3 ? draw(4) | (draw(8) ? 0 : draw(16) << 4) : type == 2 ? 2u | (uint32_t)h.epoch << 4 : draw(6));
    if (type == 3 && region >> 4 > 6)
        region &= 0x1f; /* many repeats are slow, not dangerous */
    if (type == 4 && draw(8))
        data = 2;
    raw[0] = (uint8_t)((draw(50) ? 1 : draw(16)) << 4 | type);
    raw[1] = (uint8_t)draw(256);
    raw[2] = (uint8_t)((h.boot_id & 15) << 4 | (type == 2 ? 1 + draw(15) : h.epoch));
    raw[3] = region;
    for (int i = 0; i < 4; i++)
        raw[4 + i] = (uint8_t)(offset >> (8 * i) & 0xff);
    for (size_t i = 0; i < data; i++)
        raw[8 + i] = (uint8_t)draw(type == 4 ? 80 : 256);
    uint32_t crc = hzos_crc32(raw, (uint32_t)(8 + data));
    for (size_t i = 0; i < 4; i++)
        raw[8 + data + i] = (uint8_t)(crc >> (8 * i) & 0xff);
    return encode(raw, 12 + data, line);
}

static size_t damaged(uint8_t *line, size_t count, size_t room)
{
    for (uint32_t n = 1 + draw(3); n > 0; n--) {
        size_t at = draw((uint32_t)count);
        switch (draw(4)) {
        case 0:
            line[at] = (uint8_t)(line[at] ^ 1 << draw(8));
            break;
        case 1:
            line[at] = (uint8_t)draw(256);
            break;
        case 2:
            if (count < room) {
                memmove(line + at + 1, line + at, count - at);
                line[at] = (uint8_t)draw(256);
                count++;
            }
            break;
        default:
            if (count > 1) {
                memmove(line + at, line + at + 1, count - at - 1);
                count--;
            }
        }
    }
    return count;
}

static void feed(const uint8_t *line, size_t count)
{
    for (size_t i = 0; i < count; i++)
        hzos_take(&h, line[i]);
}

int main(int count, char **words)
{
    unsigned long frames = count > 1 ? strtoul(words[1], 0, 0) : 1000000;
    state = 2 * (uint64_t)(count > 2 ? strtoul(words[2], 0, 0) : 0) + 1;
    state *= 0x9e3779b97f4a7c15u;
    hzos_start(&h, 7);
    for (unsigned long n = 0; n < frames; n++) {
        uint8_t line[2 * HZOS_MTU];
        size_t size = frame(line);
        uint32_t kind = draw(10);
        if (kind < 5)
            size = damaged(line, size, sizeof line);
        if (kind == 9)
            for (size = draw(sizeof line), kind = 0; kind < size; kind++)
                line[kind] = (uint8_t)draw(256);
        feed(line, size);
        if (draw(16) != 0)
            hzos_take(&h, 0);
    }
    hzos_take(&h, 0);
    unsigned long before = replies;
    static const uint8_t ping[] = {0, 3, 0x15, 1, 1, 1, 1, 1, 1, 5, 0x92, 0xeb, 0x0e, 0xf7, 0};
    feed(ping, sizeof ping);
    if (replies != before + 1)
        fail("the device no longer answers");
    printf("%lu frames, %lu replies, %lu run, %lu bad", frames, replies, (unsigned long)h.runs,
           (unsigned long)h.bad_frames);
    for (int i = 0; i < 8; i++)
        printf(", status %d: %lu", i, outcomes[i]);
    printf("\n");
    return 0;
}
