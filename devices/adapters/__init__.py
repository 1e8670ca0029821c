"""Devices made of what a laboratory has already: a function, a SCPI instrument, QCoDeS parameters.

No package is imported before a device of it is used.
"""
