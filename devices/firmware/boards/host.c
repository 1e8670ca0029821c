/* The firmware as a program, for tests and to try things without a board. Speaks over standard input and output, or
   with --tcp PORT over a socket of this machine, one client after the other, as a board on a terminal server does.

   --boot ID: the boot id. --noise CODES: peak of the pseudo-noise. */
#define _XOPEN_SOURCE 600
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hzos.h"
#include "net.h"

static int in_fd = 0, out_fd = 1;
static uint8_t in[4096], out[4096];
static size_t in_at, in_end, out_end;

static void flush(void)
{
    size_t sent = 0;
    while (sent < out_end) {
        ssize_t n = write(out_fd, out + sent, out_end - sent);
        if (n <= 0)
            break; /* nobody listens: as on a serial line, it is lost */
        sent += (size_t)n;
    }
    out_end = 0;
}

void uart_put(uint8_t byte)
{
    out[out_end++] = byte;
    if (out_end == sizeof out)
        flush();
}

/* Here -1 means that the other side has gone. */
int uart_get(void)
{
    if (in_at == in_end) {
        flush();
        ssize_t n = read(in_fd, in, sizeof in);
        if (n <= 0)
            return -1;
        in_at = 0;
        in_end = (size_t)n;
    }
    return in[in_at++];
}

static void serve(hzos *h)
{
    for (int byte; (byte = uart_get()) >= 0;)
        hzos_take(h, (uint8_t)byte);
}

static int listen_on(int port)
{
    struct sockaddr_in here;
    socklen_t size = sizeof here;
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    memset(&here, 0, sizeof here);
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    here.sin_port = htons((uint16_t)port);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&here, sizeof here) != 0 || listen(fd, 1) != 0
        || getsockname(fd, (struct sockaddr *)&here, &size) != 0) {
        perror("firmware: cannot listen");
        exit(1);
    }
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    return fd;
}

int main(int count, char **words)
{
    static hzos h;
    int port = -1;
    uint32_t boot_id = 1;
    for (int i = 1; i + 1 < count; i += 2) {
        long value = strtol(words[i + 1], 0, 0);
        if (strcmp(words[i], "--tcp") == 0 && value >= 0 && value < 65536)
            port = (int)value;
        else if (strcmp(words[i], "--boot") == 0)
            boot_id = (uint32_t)value;
        else if (strcmp(words[i], "--noise") == 0 && value >= 0 && value <= 1024)
            net_noise = (int32_t)value;
        else
            count = 0;
    }
    if (count % 2 == 0) {
        fprintf(stderr, "usage: %s [--tcp PORT (0: any)] [--boot ID] [--noise CODES (0 to 1024)]\n", words[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    hzos_start(&h, boot_id);
    if (port < 0) {
        serve(&h);
        return 0;
    }
    for (int fd = listen_on(port), one = 1;;) {
        in_fd = out_fd = accept(fd, 0, 0);
        if (in_fd < 0)
            return 1;
        (void)setsockopt(in_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        in_at = in_end = out_end = 0;
        serve(&h);
        close(in_fd);
    }
}
