/* Stellaris LM3S6965 (Cortex-M3), UART0 on PA0/PA1 at 115,200 baud from the 12 MHz internal oscillator's PLL-less clock.
   What comes in is taken by an interrupt into a ring, so that nothing is lost while a query runs. Run under QEMU's
   lm3s6965evb only; nobody has put it on the board itself. */
#include <stdint.h>

#include "hzos.h"

#define REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))

#define SYSCTL_RCGC1 REGISTER(0x400FE104)
#define SYSCTL_RCGC2 REGISTER(0x400FE108)
#define PORTA_AFSEL REGISTER(0x40004420)
#define PORTA_DEN REGISTER(0x4000451C)
#define UART_DATA REGISTER(0x4000C000)
#define UART_FLAGS REGISTER(0x4000C018)
#define UART_IBRD REGISTER(0x4000C024)
#define UART_FBRD REGISTER(0x4000C028)
#define UART_LCRH REGISTER(0x4000C02C)
#define UART_CTL REGISTER(0x4000C030)
#define UART_IM REGISTER(0x4000C038)
#define UART_ICR REGISTER(0x4000C044)
#define NVIC_ISER0 REGISTER(0xE000E100)

enum { RECEIVE_EMPTY = 1 << 4, TRANSMIT_FULL = 1 << 5, RECEIVED = 1 << 4 | 1 << 6, UART0_IRQ = 5 };

/* A host keeps at most a window of frames in flight; each is at most MTU + 5 bytes on the line. */
enum { RING = 8192 };
typedef char ring_holds_a_window[(RING > HZOS_WINDOW * (HZOS_MTU + 5) && (RING & (RING - 1)) == 0) ? 1 : -1];
static volatile uint8_t ring[RING];
static volatile uint32_t ring_in, ring_out;

void uart0_handler(void);
void reset_handler(void);

void uart0_handler(void)
{
    UART_ICR = RECEIVED;
    while (!(UART_FLAGS & RECEIVE_EMPTY)) {
        uint8_t byte = (uint8_t)(UART_DATA & 0xff);
        if (ring_in - ring_out < RING) {
            ring[ring_in % RING] = byte;
            ring_in++;
        }
    }
}

int uart_get(void)
{
    if (ring_in == ring_out)
        return -1;
    uint8_t byte = ring[ring_out % RING];
    ring_out++;
    return byte;
}

void uart_put(uint8_t byte)
{
    while (UART_FLAGS & TRANSMIT_FULL) {
    }
    UART_DATA = byte;
}

static void uart_start(void)
{
    SYSCTL_RCGC1 |= 1;
    SYSCTL_RCGC2 |= 1;
    PORTA_AFSEL |= 3;
    PORTA_DEN |= 3;
    UART_CTL = 0;
    UART_IBRD = 6; /* 12 MHz / (16 * 115,200) = 6.51 */
    UART_FBRD = 33;
    UART_LCRH = 3 << 5 | 1 << 4; /* 8 bits, FIFOs on */
    UART_IM = RECEIVED;
    UART_CTL = 1 | 1 << 8 | 1 << 9;
    NVIC_ISER0 = 1 << UART0_IRQ;
}

/* Counts starts in memory that a reset leaves alone. After power-on it holds anything, and counting begins anew: the
   id may then repeat, which does no harm, because epoch 0 tells the host of every start. */
static struct {
    uint32_t count, check;
} starts __attribute__((section(".noinit")));

static uint32_t next_boot_id(void)
{
    if (starts.check != ~starts.count)
        starts.count = 0;
    starts.count++;
    starts.check = ~starts.count;
    return starts.count;
}

/* Sleeps until something comes. With interrupts held off, what comes between the look and the sleep still wakes it. */
static void wait(void)
{
    __asm__ volatile("cpsid i");
    if (ring_in == ring_out)
        __asm__ volatile("wfi");
    __asm__ volatile("cpsie i");
}

extern uint32_t data_start[], data_end[], data_image[], bss_start[], bss_end[], stack_top[];

void reset_handler(void)
{
    static hzos h;
    const uint32_t *from = data_image;
    for (uint32_t *to = data_start; to < data_end;)
        *to++ = *from++;
    for (uint32_t *to = bss_start; to < bss_end;)
        *to++ = 0;
    hzos_start(&h, next_boot_id());
    uart_start();
    for (;;) {
        int byte = uart_get();
        if (byte >= 0)
            hzos_take(&h, (uint8_t)byte);
        else
            wait();
    }
}

static void halt(void)
{
    for (;;) {
    }
}

typedef void (*handler)(void);
typedef struct {
    uint32_t *stack;
    handler reset, nmi, hard_fault, memory, bus, usage, reserved[4], supervisor, debug, reserved_too, pending, tick;
    handler irq[UART0_IRQ + 1];
} vector_table;

extern const vector_table vectors;
const vector_table vectors __attribute__((section(".vectors"), used)) = {
    .stack = stack_top, .reset = reset_handler, .nmi = halt, .hard_fault = halt, .memory = halt, .bus = halt,
    .usage = halt, .supervisor = halt, .debug = halt, .pending = halt, .tick = halt,
    .irq = {halt, halt, halt, halt, halt, uart0_handler},
};
