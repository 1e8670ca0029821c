"""Firmware of a microcontroller that speaks HZO-S/1, in C; Python writes what the board says of itself."""
