/* Made by describe.py: change it there. */
#ifndef NETWORK_H
#define NETWORK_H
#define HZOS_MTU 512
#define HZOS_WINDOW 8
#define DEVICE_STAGES 2
#define DEVICE_SEGMENTS 3
#define DEVICE_ROWS 31
#define DEVICE_WIDEST 8
#define DEVICE_MAX_REPEATS_LOG2 10
#define DEVICE_PARAMETER_BYTES 78
#define NET_ACTIVATION_SHIFT 12
#define NET_WEIGHT_SHIFT 7
#define NET_WEIGHT_TOP 127
#define NET_BIAS_TOP 128
#ifndef NET_NOISE
#define NET_NOISE 16
#endif
#endif
