#include "hzos.h"

#include <string.h>

typedef char mtu_is_within_the_protocol[(HZOS_MTU >= 64 && HZOS_MTU <= 512) ? 1 : -1];

enum { HELLO = 1, WRITE = 2, RUN = 3, READ = 4, PING = 5, DO = 6, REPLY = 8, VERSION = 1 };
enum { REGION_MANIFEST = 0, REGION_PARAMETERS = 2, REGION_TELEMETRY = 4 };
enum { DO_PARK = 1 };

/* --- numbers --------------------------------------------------------------------------------------------------- */

static uint32_t get32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void put32(uint8_t *bytes, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        bytes[i] = (uint8_t)(value >> (8 * i) & 0xff);
}

/* IEEE 802.3, four bits at a time: 64 bytes of table. */
uint32_t hzos_crc32(const uint8_t *data, uint32_t count)
{
    static const uint32_t table[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    uint32_t crc = 0xffffffff;
    while (count--) {
        crc ^= *data++;
        crc = crc >> 4 ^ table[crc & 15];
        crc = crc >> 4 ^ table[crc & 15];
    }
    return ~crc;
}

/* --- sending --------------------------------------------------------------------------------------------------- */

static void send_cobs(const uint8_t *data, uint16_t count)
{
    uint16_t at = 0;
    for (;;) {
        uint8_t run = 0;
        while (run < 254 && at + run < count && data[at + run] != 0)
            run++;
        uart_put((uint8_t)(run + 1));
        for (uint8_t i = 0; i < run; i++)
            uart_put(data[at + i]);
        at = (uint16_t)(at + run);
        if (run < 254) {
            if (at == count)
                return;
            at++; /* the zero that the code byte stands for */
        } else if (at == count) {
            return;
        }
    }
}

/* `count` bytes of data are in place in the reply. */
static void answer(hzos *h, uint8_t outcome, uint32_t offset, uint16_t count)
{
    uint8_t *r = h->reply;
    uint16_t body = (uint16_t)(HZOS_HEADER + count);
    r[0] = (uint8_t)(VERSION << 4 | (h->frame[0] & 7) | REPLY);
    r[1] = h->frame[1];
    r[2] = outcome;
    r[3] = (uint8_t)((h->boot_id & 15) << 4 | h->epoch);
    put32(r + 4, offset);
    put32(r + body, hzos_crc32(r, body));
    uart_put(0);
    send_cobs(r, (uint16_t)(body + HZOS_CRC));
    uart_put(0);
}

/* --- commands -------------------------------------------------------------------------------------------------- */

static void hello(hzos *h, uint32_t nonce)
{
    uint8_t *data = h->reply + HZOS_HEADER;
    if (!h->greeted || nonce != h->nonce)
        for (int i = 0; i < HZOS_WINDOW; i++)
            h->cache[i].used = 0;
    h->greeted = 1;
    h->nonce = nonce;
    put32(data, h->boot_id);
    put32(data + 4, h->runs);
    put32(data + 8, h->bad_frames);
    put32(data + 12, device_manifest_size);
    answer(h, OUTCOME_OK, (uint32_t)HZOS_MTU | (uint32_t)HZOS_WINDOW << 16, 16);
}

/* The request says which epoch it follows (high nibble of b3) and which begins with it. A device in neither has been
   restarted or parked since: what the host does not write now would be missing. */
static uint8_t written(hzos *h, uint8_t where, uint32_t address, const uint8_t *data, uint16_t count)
{
    const uint8_t boot = h->frame[2] >> 4, epoch = h->frame[2] & 15, before = where >> 4;
    if ((where & 15) != REGION_PARAMETERS)
        return OUTCOME_ADDRESS;
    if (boot != (h->boot_id & 15) || epoch == 0 || (h->epoch != before && h->epoch != epoch))
        return OUTCOME_STALE;
    uint8_t outcome = device_write(address, data, count);
    if (outcome == OUTCOME_OK)
        h->epoch = epoch;
    return outcome;
}

static uint16_t say(char *text, uint16_t at, const char *word)
{
    while (*word)
        text[at++] = *word++;
    return at;
}

static uint16_t say_number(char *text, uint16_t at, const char *name, uint32_t value)
{
    char digits[10];
    int count = 0;
    text[at] = at == 0 ? '{' : ',';
    text[at + 1] = '"';
    at = say(text, say(text, (uint16_t)(at + 2), name), "\":");
    do
        digits[count++] = (char)('0' + value % 10);
    while ((value /= 10) != 0);
    while (count)
        text[at++] = digits[--count];
    return at;
}

/* A snapshot, made anew when its first byte is read: a reading in parts fits together. */
static void look(hzos *h)
{
    const char *name;
    int32_t value = 0;
    uint16_t at = say_number(h->telemetry, 0, "runs", h->runs);
    at = say_number(h->telemetry, at, "repeated", h->repeated);
    at = say_number(h->telemetry, at, "bad_frames", h->bad_frames);
    for (unsigned i = 0; (name = device_number(i, &value)) != 0; i++) {
        if (at + strlen(name) + 16 > sizeof h->telemetry)
            break;
        at = say_number(h->telemetry, at, name, value < 0 ? 0 : (uint32_t)value);
    }
    h->telemetry_length = say(h->telemetry, at, "}");
}

/* A reading beyond the end is shorter, or empty. */
static uint8_t shown(hzos *h, uint8_t region, uint32_t address, uint16_t *count)
{
    uint8_t *data = h->reply + HZOS_HEADER;
    uint32_t size;
    if (region == REGION_MANIFEST) {
        size = device_manifest_size;
    } else if (region == REGION_PARAMETERS) {
        size = DEVICE_PARAMETER_BYTES;
    } else if (region == REGION_TELEMETRY) {
        if (address == 0)
            look(h);
        size = h->telemetry_length;
    } else {
        return OUTCOME_ADDRESS;
    }
    if (address > size)
        address = size;
    if (*count > HZOS_ROOM)
        *count = HZOS_ROOM;
    if (*count > size - address)
        *count = (uint16_t)(size - address);
    if (region == REGION_MANIFEST)
        memcpy(data, device_manifest + address, *count);
    else if (region == REGION_PARAMETERS)
        device_read(address, data, *count);
    else
        memcpy(data, h->telemetry + address, *count);
    return OUTCOME_OK;
}

/* Where the result of query `id` is or goes; 0: it was answered so long ago that its result is gone. */
static hzos_result *place(hzos *h, uint32_t id)
{
    hzos_result *smallest = &h->cache[0];
    for (int i = 0; i < HZOS_WINDOW; i++) {
        hzos_result *r = &h->cache[i];
        if (r->used && r->id == id)
            return r;
    }
    for (int i = 0; i < HZOS_WINDOW; i++) {
        hzos_result *r = &h->cache[i];
        if (!r->used)
            return r;
        if (r->id < smallest->id)
            smallest = r;
    }
    return id < smallest->id ? 0 : smallest;
}

static void run(hzos *h, uint8_t region, uint32_t id, const uint8_t *data, uint16_t count)
{
    uint8_t *out = h->reply + HZOS_HEADER;
    hzos_result *r = place(h, id);
    if (r == 0)
        return;
    if (r->used && r->id == id) {
        h->repeated++;
        memcpy(out, r->data, r->length);
        answer(h, r->outcome, id, r->length);
        return;
    }
    if (h->frame[2] != (uint8_t)((h->boot_id & 15) << 4 | h->epoch) || h->epoch == 0) {
        answer(h, OUTCOME_STALE, id, 0);
        return;
    }
    const device_query query = {id, region & 15, (uint8_t)(region >> 4), data, count};
    uint16_t length = 0;
    uint8_t outcome = device_run(&query, out, HZOS_ROOM, &length), code = outcome & 0x7f;
    if (code == OUTCOME_OK || code == OUTCOME_FAULT) { /* anything else was refused and not run: nothing to remember */
        h->runs++;
        r->used = 1;
        r->id = id;
        r->outcome = outcome;
        r->length = length;
        memcpy(r->data, out, length);
    }
    answer(h, outcome, id, length);
}

static uint8_t done(hzos *h, uint8_t what)
{
    if (what != DO_PARK)
        return OUTCOME_ADDRESS;
    device_park();
    h->epoch = 0;
    return OUTCOME_OK;
}

static void obey(hzos *h)
{
    const uint8_t *f = h->frame;
    const uint8_t *data = f + HZOS_HEADER;
    uint16_t count = (uint16_t)(h->length - HZOS_HEADER - HZOS_CRC);
    uint32_t offset = get32(f + 4);
    uint8_t outcome = OUTCOME_TYPE, region = f[3] & 15;
    uint16_t wanted = 0;

    if (f[0] & REPLY)
        return; /* our own words, sent back by a line that echoes */
    if (f[0] >> 4 != VERSION) {
        answer(h, OUTCOME_VERSION, offset, 0);
        return;
    }
    switch (f[0] & 7) {
    case HELLO:
        hello(h, offset);
        return;
    case RUN:
        run(h, f[3], offset, data, count);
        return;
    case WRITE:
        outcome = written(h, f[3], offset, data, count);
        break;
    case READ:
        outcome = OUTCOME_LENGTH;
        if (count == 2) {
            wanted = (uint16_t)(data[0] | data[1] << 8);
            outcome = shown(h, region, offset, &wanted);
        }
        break;
    case PING:
        outcome = OUTCOME_OK;
        break;
    case DO:
        outcome = done(h, region);
        break;
    default:
        break;
    }
    answer(h, outcome, offset, outcome == OUTCOME_OK ? wanted : 0);
}

/* --- receiving ------------------------------------------------------------------------------------------------- */

static void begin(hzos *h)
{
    h->length = 0;
    h->left = h->zero_due = h->begun = h->dropped = 0;
}

static void store(hzos *h, uint8_t byte)
{
    if (h->length < HZOS_MTU)
        h->frame[h->length++] = byte;
    else
        h->dropped = 1;
}

static void end(hzos *h)
{
    uint16_t checked = (uint16_t)(h->length - HZOS_CRC);
    if (!h->begun)
        return; /* two zeros in a row are no frame */
    if (h->dropped || h->left || h->length < HZOS_HEADER + HZOS_CRC
        || hzos_crc32(h->frame, checked) != get32(h->frame + checked))
        h->bad_frames++;
    else
        obey(h);
}

void hzos_start(hzos *h, uint32_t boot_id)
{
    memset(h, 0, sizeof *h);
    h->boot_id = boot_id;
}

void hzos_take(hzos *h, uint8_t byte)
{
    if (byte == 0) {
        end(h);
        begin(h);
        return;
    }
    h->begun = 1;
    if (h->left) {
        h->left--;
        store(h, byte);
        return;
    }
    if (h->zero_due)
        store(h, 0);
    h->left = (uint8_t)(byte - 1);
    h->zero_due = byte != 255;
}
